//! The one table of everything that can be set.

use culvert_config::Holds::{Guarded, Many, Secret, Switch, Text};
use culvert_config::{Program, Setting, row};
use culvert_licence::vendor;

/// Control's command line, environment and file.
pub const PROGRAM: Program = Program {
    name: "culvert-control",
    about: "Decides: clusters, tokens, registry; publishes state to data planes",
    version: env!("CARGO_PKG_VERSION"),
    file: "/etc/culvert/control.toml",
    settings: SETTINGS,
    references: &[
        ("metrics", || {
            crate::metrics::Metrics::new().registry.describe()
        }),
        ("errors", crate::api::errors),
        ("openapi", || {
            crate::api::document().to_pretty_json().unwrap_or_default()
        }),
    ],
    verbs: super::migrate::verb,
};

const SETTINGS: &[Setting] = &[
    Setting {
        env_aliases: &["HUB_DB_DSN"],
        ..row(
            "db-dsn",
            Guarded,
            "",
            "Store: sqlite:PATH, PATH, or the URL or key=value form of libpq for PostgreSQL; default: control.db in --state-dir",
        )
    },
    Setting {
        env_aliases: &["STATE_DIRECTORY"],
        ..row(
            "state-dir",
            Text,
            "/var/lib/culvert/control",
            "Directory of the signing key and the admin token, mode 0700",
        )
    },
    Setting {
        env_aliases: &["CLUSTERS", "PERISCOPE_CLUSTERS_FILE"],
        ..row(
            "clusters",
            Text,
            "",
            "Registry file, YAML or JSON: clusters kept in it win over the API; read again when it changes",
        )
    },
    row(
        "socket",
        Text,
        "",
        "Unix socket of the admin API; default: api.sock in --state-dir",
    ),
    Setting {
        env_aliases: &["PORT"],
        ..row(
            "listen",
            Text,
            "",
            "TCP address of the admin API, loopback only; needs the admin token",
        )
    },
    row(
        "admin-addr",
        Text,
        "127.0.0.1:9900",
        "Address of /metrics and probes",
    ),
    row(
        "state-socket",
        Text,
        "",
        "Unix socket of the link to data planes; default: state.sock in --state-dir",
    ),
    row(
        "state-addr",
        Text,
        "",
        "TCP address of the link to data planes; needs the three --state-tls-*",
    ),
    row(
        "state-tls-cert",
        Text,
        "",
        "Certificate of --state-addr, PEM",
    ),
    row(
        "state-tls-key",
        Text,
        "",
        "Private key of --state-tls-cert, PEM",
    ),
    row(
        "state-tls-client-ca",
        Text,
        "",
        "CA whose certificates data planes show, PEM",
    ),
    row(
        "peer-uid",
        Text,
        "",
        "User id that may use the Unix sockets beside this process's own",
    ),
    Setting {
        env_aliases: &["RADAR_HUB_PUBLIC_URL", "HUB_FRONTEND_URL"],
        ..row(
            "public-url",
            Text,
            "",
            "Where people and agents find the hub, for example https://hub.example.com:8443",
        )
    },
    row(
        "agent-tunnel-sans",
        Text,
        "",
        "Names and addresses by which agents dial the data planes' --agent-mtls-addr, with commas: control certifies that listener for them",
    ),
    row(
        "agent-cert-life",
        Text,
        "90d",
        "Life of the certificates of agents, 60s to 90d; they renew at two thirds of it",
    ),
    row(
        "agent-ca-dir",
        Text,
        "",
        "Directory with ca.crt and ca.key, from which the first CA of agents is taken; default: control makes one",
    ),
    row(
        "data-plane-url",
        Text,
        "",
        "Where control asks clusters for /api/fleet, as the person who asks: people's listener of the data plane; default: --public-url",
    ),
    Setting {
        env_aliases: &[
            "PERISCOPE_AUDIT_RETENTION_DAYS",
            "RADAR_HUB_AUDIT_RETENTION_DAYS",
        ],
        ..row(
            "audit-retention-days",
            Text,
            "30",
            "Days that rows of the audit log are kept; 0 = no end",
        )
    },
    Setting {
        env_aliases: &["PERISCOPE_AUDIT_MAX_SIZE_MB"],
        ..row(
            "audit-max-size-mb",
            Text,
            "1024",
            "MiB of the store above which the oldest rows of the audit log go; 0 = no cap",
        )
    },
    Setting {
        env_aliases: &["PERISCOPE_AUDIT_VACUUM_INTERVAL"],
        ..row(
            "audit-vacuum-interval",
            Text,
            "24h",
            "Time between two prunings of the audit log, 1m to 30d",
        )
    },
    row(
        "audit-stdout",
        Switch,
        "",
        "Print each row of the audit log as a line of JSON on standard output, from the start on",
    ),
    row(
        "personal-token-days",
        Text,
        "90",
        "Longest life of a person's token in days, 1 to 3650; also the life of one that names none",
    ),
    row(
        "connect-life",
        Text,
        "15m",
        "How long a request of `culvert-agent connect` waits for an administrator, 5s to 1h; off = no agent can ask",
    ),
    Setting {
        env_aliases: &["HUB_ALLOWED_ORIGINS"],
        ..row(
            "allowed-origins",
            Text,
            "",
            "Origins beside --public-url whose pages may change something, separated by commas",
        )
    },
    Setting {
        env_aliases: &["HUB_COOKIE_PASSWORD"],
        ..row(
            "cookie-password",
            Secret,
            "",
            "What sessions are sealed with, 32 random bytes or more; nobody signs in without it",
        )
    },
    row(
        "cookie-password-previous",
        Secret,
        "",
        "The cookie password before: its sessions stay good while it is set",
    ),
    row(
        "session-idle",
        Text,
        "30m",
        "A session that is not used ends after this time, 1m to 30d",
    ),
    row(
        "session-life",
        Text,
        "8h",
        "A session ends after this time in any case, 1m to 30d",
    ),
    Setting {
        env_aliases: &["RADAR_HUB_BOOTSTRAP_ADMIN_EMAIL"],
        ..row(
            "admin-email",
            Text,
            "",
            "Who may sign in without an identity provider; needs --admin-password-hash",
        )
    },
    Setting {
        env_aliases: &["RADAR_HUB_BOOTSTRAP_ADMIN_PASSWORD_HASH"],
        ..row(
            "admin-password-hash",
            Secret,
            "",
            "argon2id hash of their password, as `culvert-control hash-password` prints it",
        )
    },
    Setting {
        env_aliases: &["RADAR_HUB_OIDC_ISSUER"],
        ..row(
            "oidc-issuer",
            Text,
            "",
            "OpenID provider that people sign in at, for example https://id.example.com/realms/corp; needs --oidc-client-id",
        )
    },
    Setting {
        env_aliases: &["RADAR_HUB_OIDC_CLIENT_ID"],
        ..row(
            "oidc-client-id",
            Text,
            "",
            "Who this hub is at that provider",
        )
    },
    Setting {
        env_aliases: &["RADAR_HUB_OIDC_CLIENT_SECRET"],
        ..row(
            "oidc-client-secret",
            Secret,
            "",
            "Its secret there; without one it is a public client, held by PKCE alone",
        )
    },
    Setting {
        env_aliases: &["RADAR_HUB_OIDC_CALLBACK_URL"],
        ..row(
            "oidc-callback-url",
            Text,
            "",
            "Where browsers come back from every provider; default: /api/auth/callback of --public-url",
        )
    },
    row(
        "oidc-title",
        Text,
        "",
        "Name of that provider for people; default: default",
    ),
    row(
        "oidc-scopes",
        Many,
        "email,profile",
        "Scopes asked for beside openid; add what makes the provider name groups",
    ),
    row(
        "oidc-groups-claim",
        Text,
        "groups",
        "Claim with groups, a text or a list; dots lead into nested objects",
    ),
    row(
        "oidc-groups-filter",
        Many,
        "",
        "Keep groups that begin with one of these; a cookie holds about 2.5 KiB of groups; default: all",
    ),
    row(
        "oidc-username-claim",
        Text,
        "sub",
        "Claim that says who somebody is; email only where email_verified is true",
    ),
    row(
        "oidc-prefix",
        Text,
        "",
        "Put in front of subjects and groups of that provider, so that another cannot name them",
    ),
    row(
        "oidc-providers",
        Text,
        "",
        "TOML file with further providers, a [[provider]] each",
    ),
    row(
        "admin-groups",
        Many,
        "",
        "Groups whose people may do everything at the hub; user:SUBJECT, here and below, is one person",
    ),
    row(
        "maintain-groups",
        Many,
        "",
        "Groups of tier maintain; they read at the hub",
    ),
    row(
        "write-groups",
        Many,
        "",
        "Groups of tier write; they read at the hub",
    ),
    row(
        "triage-groups",
        Many,
        "",
        "Groups of tier triage; they read at the hub",
    ),
    row(
        "read-groups",
        Many,
        "",
        "Groups of tier read; who has none of these groups sees only who they are",
    ),
    Setting {
        env_aliases: &[vendor::MODE_ENV],
        ..row(
            "mode",
            Text,
            vendor::SELF_HOSTED,
            "How this hub is run; self-hosted wants a licence, and says so when it has none",
        )
    },
    Setting {
        env_aliases: &[vendor::ORG_ENV],
        ..row(
            "org-name",
            Text,
            "Default",
            "Name of the organisation, as the license server is told",
        )
    },
    Setting {
        env_aliases: &[vendor::KEY_ENV],
        ..row(
            "license-key",
            Secret,
            "",
            "The licence, a signed text; nothing is ever blocked without one",
        )
    },
    row(
        "license-file",
        Text,
        "",
        "File with the licence; default: the first of /etc/radar-hub/license, /etc/culvert/license",
    ),
    row(
        "license-heartbeat",
        Switch,
        "true",
        "Tell the license server the seven fields of `culvert license heartbeat --print` every 6 h",
    ),
    row(
        "license-server",
        Text,
        vendor::HEARTBEAT_URL,
        "Where heartbeats go, https only",
    ),
    row(
        "proxy",
        Text,
        "",
        "Proxy towards the license server, identity providers and --data-plane-url; default: HTTPS_PROXY and its kin",
    ),
    row(
        "outbound-ca",
        Text,
        "",
        "Further CA certificates of the license server, identity providers, the data plane and proxies, PEM",
    ),
    row("log-level", Text, "info", "error, warn, info, debug, trace"),
    row("log-format", Text, "auto", "auto, logfmt, json"),
];
