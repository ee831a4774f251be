//! The one table of everything that can be set: flag, environment, aliases,
//! default. `--help`, the environment, the file and the reference in `docs/`
//! are all read through it.

use clap::{Arg, Command};
use culvert_config::Holds::{Guarded, Many, Secret, Switch, Text};
use culvert_config::{Program, Setting, row};

/// The command line of the agent.
pub const PROGRAM: Program = Program {
    name: "culvert-agent",
    about: "Dials out from the private side and joins streams to local services",
    version: env!("CARGO_PKG_VERSION"),
    file: "/etc/culvert/agent.toml",
    settings: SETTINGS,
    references: &[("metrics", || {
        crate::metrics::AgentMetrics::new("").registry.describe()
    })],
    verbs,
};

/// `join cvj_...`, `connect` and `forward` take the flags before and behind them.
fn verbs(command: Command) -> Command {
    let string = Arg::new("string").value_name("CVJ").required(true);
    let join = Command::new("join")
        .about("Run with a join string")
        .arg(string);
    let wish = Arg::new("wish").value_name("CLUSTER");
    let connect = Command::new("connect")
        .about("Ask the hub for a token, which an administrator approves, and run with it")
        .arg(wish.help("The cluster to be let into; the administrator decides"));
    command
        .mut_args(|arg| arg.global(true))
        .subcommand(join)
        .subcommand(connect)
        .subcommand(super::forward::verb())
        .subcommand(role(&super::BRIDGE))
        .subcommand(role(&super::BROKER))
}

/// A role with a table of its own: named here for `--help`; the verb has to stand first.
fn role(program: &Program) -> Command {
    let verb = program.name.rsplit(' ').next().unwrap_or_default();
    Command::new(verb).about(program.about).after_help(
        "Write the verb first: its own flags are shown by `culvert-agent <verb> --help`.",
    )
}

const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const SERVICE_ACCOUNT_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// Every setting of the agent.
const SETTINGS: &[Setting] = &[
    Setting {
        env: Some("CULVERT_HUB"),
        also: &["hub"],
        env_aliases: &["SERVER_URL", "PERISCOPE_SERVER_URL"],
        ..row(
            "server",
            Many,
            "",
            "Hub URL, for example wss://hub.example.com/agent; several are tried in order, neighbours with `;weight=n` in proportion to it",
        )
    },
    Setting {
        env_aliases: &["TOKEN", "ENROLL_TOKEN"],
        ..row(
            "token",
            Secret,
            "",
            "Cluster token (rhc_...), or bootstrap token (cve_...) that is changed for a certificate; prefer --token-file",
        )
    },
    Setting {
        env_aliases: &["PERISCOPE_REGISTRATION_URL"],
        ..row(
            "registration-url",
            Text,
            "",
            "Where a bootstrap token is changed for a certificate; default: /api/agents/register at the first hub address",
        )
    },
    row(
        "join",
        Guarded,
        "",
        "Join string (cvj_...): hub, cluster, token and pin in one word",
    ),
    Setting {
        env_aliases: &["PERISCOPE_CLUSTER_NAME"],
        ..row("cluster", Text, "", "Cluster id the token must belong to")
    },
    row(
        "target",
        Text,
        "kubernetes.default.svc:443",
        "The one service this agent serves: host:port or http(s)://host[:port]",
    ),
    row(
        "target-kind",
        Text,
        "",
        "http or kube; default: http for a URL, kube for host:port",
    ),
    Setting {
        env: Some("CULVERT_SERVICES"),
        ..row(
            "service",
            Many,
            "",
            "NAME=HOST:PORT: a TCP service that the hub's routes may reach by this name; may be given 64 times in all",
        )
    },
    Setting {
        env: Some("CULVERT_SEALED_SERVICES"),
        ..row(
            "sealed-service",
            Many,
            "",
            "NAME=HOST:PORT: a service that speaks TLS with its clients, from end to end; the hub passes it on unopened",
        )
    },
    row(
        "allow-plaintext-data-channels",
        Switch,
        "false",
        "Serve services that are not sealed on connections without TLS when the hub allows it too; for networks that are trusted",
    ),
    row(
        "allow-address",
        Many,
        "",
        "Loopback, link-local or metadata address or network that the name of the target or of a service may resolve to",
    ),
    row(
        "sa-token-path",
        Text,
        SERVICE_ACCOUNT_TOKEN,
        "File whose content is sent to the target as bearer token, read again when it changes",
    ),
    row(
        "ca-cert",
        Text,
        SERVICE_ACCOUNT_CA,
        "CA certificate of the target, PEM",
    ),
    row(
        "insecure",
        Switch,
        "false",
        "Do not verify the target's certificate",
    ),
    row(
        "plain-target",
        Switch,
        "false",
        "Speak plain HTTP to the target",
    ),
    row(
        "impersonate-users",
        Text,
        "*",
        "Users that the hub may act as, with commas; * is any characters, system: is never meant by it",
    ),
    row(
        "impersonate-groups",
        Text,
        "*",
        "Groups that the hub may act as, in the same form",
    ),
    row(
        "require-identity",
        Switch,
        "false",
        "Refuse requests to a Kubernetes target that act as nobody, with the agent's own rights",
    ),
    row(
        "allow-insecure-server",
        Switch,
        "false",
        "Allow ws:// to the hub; for development",
    ),
    row(
        "server-ca-cert",
        Text,
        "",
        "CA certificate of the hub, PEM; default: the system's",
    ),
    row(
        "client-cert",
        Text,
        "",
        "Client certificate for the hub, PEM",
    ),
    row("client-key", Text, "", "Private key of --client-cert, PEM"),
    Setting {
        env_aliases: &["PERISCOPE_SERVER_CA_HASH"],
        ..row(
            "hub-pin",
            Text,
            "",
            "sha256:<64 hex> of the hub's public key, in place of a CA",
        )
    },
    row(
        "proxy",
        Guarded,
        "",
        "Proxy towards the hub: http://, https:// or socks5://, user:password@ allowed",
    ),
    row(
        "proxy-ca",
        Text,
        "",
        "Further CA certificate of an https:// or intercepting proxy, PEM",
    ),
    Setting {
        env_aliases: &["STATE_DIRECTORY"],
        ..row(
            "state-dir",
            Text,
            "",
            "Directory that keeps the certificate of an enrolled agent, or a rotated token; without it tokens are not rotated in place",
        )
    },
    row(
        "state-secret",
        Text,
        "",
        "NAMESPACE[/PREFIX]: keeps the state directory in the Kubernetes Secret PREFIX-state as well, default culvert-agent-state, for pods without a disk of their own",
    ),
    row(
        "kube-api",
        Text,
        "",
        "https://HOST:PORT of the Kubernetes API for --state-secret; default: that of the pod",
    ),
    row(
        "kube-ca-file",
        Text,
        "",
        "CA certificate of --kube-api, PEM; default: that of the pod's account",
    ),
    row(
        "kube-token-file",
        Text,
        "",
        "Token for --kube-api; default: that of the pod's account",
    ),
    row("region", Text, "", "Region shown in the hub"),
    Setting {
        env: Some("CULVERT_LABELS"),
        ..row("label", Many, "", "key=value shown in the hub")
    },
    row(
        "max-retry",
        Text,
        "60s",
        "Longest wait between two connection attempts",
    ),
    row("max-conns", Text, "1024", "Concurrent streams, 1 to 16384"),
    Setting {
        env_aliases: &["PERISCOPE_AGENT_HEALTH_ADDR"],
        ..row(
            "health-addr",
            Text,
            ":8081",
            "Address of /healthz, /readyz and /metrics",
        )
    },
    Setting {
        env_aliases: &["PERISCOPE_LOG_LEVEL"],
        ..row("log-level", Text, "info", "error, warn, info, debug, trace")
    },
    row("log-format", Text, "auto", "auto, logfmt, json"),
    row(
        "ebpf",
        Text,
        "auto",
        "eBPF observer: auto and off are the same here, an agent loads nothing; require is no start",
    ),
    row(
        "threads",
        Text,
        "auto",
        "Worker threads: auto (1 or 2) or 1 to 64",
    ),
    row(
        "io-engine",
        Text,
        "auto",
        "What the engine threads use: auto (io_uring where the kernel allows it), io_uring, epoll",
    ),
    row(
        "engine-threads",
        Text,
        "1",
        "Threads that move the bytes of services on data channels without TLS, 1 to 64; started when there is a service",
    ),
    row(
        "spin",
        Text,
        "auto",
        "Poll on for a moment after a small message: auto (where a CPU is left for it) or off",
    ),
    row(
        "memory-budget",
        Text,
        "1GiB",
        "Memory for streams that wait for a reader, at least 16MiB",
    ),
    row(
        "drain-grace",
        Text,
        "30s",
        "Time for requests and connections in flight after SIGTERM, 0s to 24h",
    ),
];
