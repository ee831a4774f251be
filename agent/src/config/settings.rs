//! The one table of everything that can be set: flag, environment, aliases,
//! default. `--help`, the environment, and the file are all read through it.

/// What a setting holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// One text.
    Text,
    /// Several texts: a repeated flag, or a list separated by commas.
    Many,
    /// `true` or `false`; the bare flag means `true`.
    Switch,
    /// One text that is never shown; has a `_FILE` twin.
    Secret,
}

/// One row of the table.
pub(super) struct Setting {
    /// Long flag; the file's key is the same with `_` for `-`.
    pub name: &'static str,
    /// Further spellings of the flag.
    pub also: &'static [&'static str],
    /// Own environment name.
    pub env: &'static str,
    /// Names that other products use for the same thing.
    pub env_aliases: &'static [&'static str],
    /// Kind of value.
    pub holds: Holds,
    /// Value when nothing is said; empty for none.
    pub default: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
}

const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const SERVICE_ACCOUNT_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

const fn row(
    name: &'static str,
    env: &'static str,
    holds: Holds,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting {
        name,
        also: &[],
        env,
        env_aliases: &[],
        holds,
        default,
        help,
    }
}

use Holds::{Many, Secret, Switch, Text};

/// Every setting of the agent.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        also: &["hub"],
        env_aliases: &["SERVER_URL", "PERISCOPE_SERVER_URL"],
        ..row(
            "server",
            "CULVERT_HUB",
            Many,
            "",
            "Hub URL, for example wss://hub.example.com/agent; several are tried in order",
        )
    },
    Setting {
        env_aliases: &["TOKEN"],
        ..row(
            "token",
            "CULVERT_TOKEN",
            Secret,
            "",
            "Cluster token (rhc_...); prefer --token-file",
        )
    },
    row(
        "join",
        "CULVERT_JOIN",
        Secret,
        "",
        "Join string (cvj_...): hub, cluster, token and pin in one word",
    ),
    Setting {
        env_aliases: &["PERISCOPE_CLUSTER_NAME"],
        ..row(
            "cluster",
            "CULVERT_CLUSTER",
            Text,
            "",
            "Cluster id the token must belong to",
        )
    },
    row(
        "target",
        "CULVERT_TARGET",
        Text,
        "kubernetes.default.svc:443",
        "The one service this agent serves: host:port or http(s)://host[:port]",
    ),
    row(
        "target-kind",
        "CULVERT_TARGET_KIND",
        Text,
        "",
        "http or kube; default: http for a URL, kube for host:port",
    ),
    row(
        "allow-address",
        "CULVERT_ALLOW_ADDRESS",
        Many,
        "",
        "Loopback, link-local or metadata address or network that the target's name may resolve to",
    ),
    row(
        "sa-token-path",
        "CULVERT_SA_TOKEN_PATH",
        Text,
        SERVICE_ACCOUNT_TOKEN,
        "File whose content is sent to the target as bearer token, read again when it changes",
    ),
    row(
        "ca-cert",
        "CULVERT_CA_CERT",
        Text,
        SERVICE_ACCOUNT_CA,
        "CA certificate of the target, PEM",
    ),
    row(
        "insecure",
        "CULVERT_INSECURE",
        Switch,
        "false",
        "Do not verify the target's certificate",
    ),
    row(
        "plain-target",
        "CULVERT_PLAIN_TARGET",
        Switch,
        "false",
        "Speak plain HTTP to the target",
    ),
    row(
        "allow-insecure-server",
        "CULVERT_ALLOW_INSECURE_SERVER",
        Switch,
        "false",
        "Allow ws:// to the hub; for development",
    ),
    row(
        "server-ca-cert",
        "CULVERT_SERVER_CA_CERT",
        Text,
        "",
        "CA certificate of the hub, PEM; default: the system's",
    ),
    row(
        "client-cert",
        "CULVERT_CLIENT_CERT",
        Text,
        "",
        "Client certificate for the hub, PEM",
    ),
    row(
        "client-key",
        "CULVERT_CLIENT_KEY",
        Text,
        "",
        "Private key of --client-cert, PEM",
    ),
    Setting {
        env_aliases: &["PERISCOPE_SERVER_CA_HASH"],
        ..row(
            "hub-pin",
            "CULVERT_HUB_PIN",
            Text,
            "",
            "sha256:<64 hex> of the hub's public key, in place of a CA",
        )
    },
    row(
        "proxy",
        "CULVERT_PROXY",
        Secret,
        "",
        "Proxy towards the hub: http://, https:// or socks5://, user:password@ allowed",
    ),
    row(
        "proxy-ca",
        "CULVERT_PROXY_CA",
        Text,
        "",
        "Further CA certificate of an https:// or intercepting proxy, PEM",
    ),
    Setting {
        env_aliases: &["STATE_DIRECTORY"],
        ..row(
            "state-dir",
            "CULVERT_STATE_DIR",
            Text,
            "",
            "Directory that keeps a rotated token; without it tokens are not rotated in place",
        )
    },
    row(
        "region",
        "CULVERT_REGION",
        Text,
        "",
        "Region shown in the hub",
    ),
    row(
        "label",
        "CULVERT_LABELS",
        Many,
        "",
        "key=value shown in the hub",
    ),
    row(
        "max-retry",
        "CULVERT_MAX_RETRY",
        Text,
        "60s",
        "Longest wait between two connection attempts",
    ),
    row(
        "max-conns",
        "CULVERT_MAX_CONNS",
        Text,
        "1024",
        "Concurrent streams, 1 to 16384",
    ),
    Setting {
        env_aliases: &["PERISCOPE_AGENT_HEALTH_ADDR"],
        ..row(
            "health-addr",
            "CULVERT_HEALTH_ADDR",
            Text,
            ":8081",
            "Address of /healthz, /readyz and /metrics",
        )
    },
    Setting {
        env_aliases: &["PERISCOPE_LOG_LEVEL"],
        ..row(
            "log-level",
            "CULVERT_LOG_LEVEL",
            Text,
            "info",
            "error, warn, info, debug, trace",
        )
    },
    row(
        "log-format",
        "CULVERT_LOG_FORMAT",
        Text,
        "auto",
        "auto, logfmt, json",
    ),
    row(
        "threads",
        "CULVERT_THREADS",
        Text,
        "auto",
        "Worker threads: auto (1 or 2) or 1 to 64",
    ),
    row(
        "drain-grace",
        "CULVERT_DRAIN_GRACE",
        Text,
        "30s",
        "Time for requests in flight after SIGTERM, 0s to 24h",
    ),
];
