//! The one table of everything that can be set: flag, environment, aliases,
//! default. `--help`, the environment, and the file are all read through it.

/// One row of the table.
pub(super) struct Setting {
    /// Long flag; the file's key is the same with `_` for `-`.
    pub name: &'static str,
    /// Own environment name.
    pub env: &'static str,
    /// Names that other products use for the same thing.
    pub env_aliases: &'static [&'static str],
    /// Never shown; has a `_FILE` twin.
    pub secret: bool,
    /// Value when nothing is said; empty for none.
    pub default: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
}

const fn row(
    name: &'static str,
    env: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting {
        name,
        env,
        env_aliases: &[],
        secret: false,
        default,
        help,
    }
}

/// Every setting of control.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        env_aliases: &["HUB_DB_DSN"],
        secret: true,
        ..row(
            "db-dsn",
            "CULVERT_DB_DSN",
            "",
            "Store: sqlite:PATH or PATH; default: control.db in --state-dir",
        )
    },
    Setting {
        env_aliases: &["STATE_DIRECTORY"],
        ..row(
            "state-dir",
            "CULVERT_STATE_DIR",
            "/var/lib/culvert/control",
            "Directory of the signing key and the admin token, mode 0700",
        )
    },
    row(
        "socket",
        "CULVERT_SOCKET",
        "",
        "Unix socket of the admin API; default: api.sock in --state-dir",
    ),
    Setting {
        env_aliases: &["PORT"],
        ..row(
            "listen",
            "CULVERT_LISTEN",
            "",
            "TCP address of the admin API, loopback only; needs the admin token",
        )
    },
    row(
        "admin-addr",
        "CULVERT_ADMIN_ADDR",
        "127.0.0.1:9900",
        "Address of /metrics and probes",
    ),
    row(
        "state-socket",
        "CULVERT_STATE_SOCKET",
        "",
        "Unix socket of the link to data planes; default: state.sock in --state-dir",
    ),
    row(
        "state-addr",
        "CULVERT_STATE_ADDR",
        "",
        "TCP address of the link to data planes; needs the three --state-tls-*",
    ),
    row(
        "state-tls-cert",
        "CULVERT_STATE_TLS_CERT",
        "",
        "Certificate of --state-addr, PEM",
    ),
    row(
        "state-tls-key",
        "CULVERT_STATE_TLS_KEY",
        "",
        "Private key of --state-tls-cert, PEM",
    ),
    row(
        "state-tls-client-ca",
        "CULVERT_STATE_TLS_CLIENT_CA",
        "",
        "CA whose certificates data planes show, PEM",
    ),
    row(
        "peer-uid",
        "CULVERT_PEER_UID",
        "",
        "User id that may use the Unix sockets beside this process's own",
    ),
    Setting {
        env_aliases: &["RADAR_HUB_PUBLIC_URL", "HUB_FRONTEND_URL"],
        ..row(
            "public-url",
            "CULVERT_PUBLIC_URL",
            "",
            "Where people and agents find the hub, for example https://hub.example.com:8443",
        )
    },
    row(
        "log-level",
        "CULVERT_LOG_LEVEL",
        "info",
        "error, warn, info, debug, trace",
    ),
    row(
        "log-format",
        "CULVERT_LOG_FORMAT",
        "auto",
        "auto, logfmt, json",
    ),
];
