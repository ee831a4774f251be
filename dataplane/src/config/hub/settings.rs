//! The table of what the data plane of a hub can be told.

use culvert_config::{Holds, Setting, row};

/// The eBPF observer, in every role.
pub(in crate::config) const EBPF: Setting = row(
    "ebpf",
    Holds::Text,
    "auto",
    "eBPF observer: auto, off, require (no start below --ebpf-tier-max)",
);
/// See [`EBPF`].
pub(in crate::config) const EBPF_TIER: Setting = row(
    "ebpf-tier-max",
    Holds::Text,
    "skb",
    "Highest tier of the observer: sockops, skb",
);
/// See [`EBPF`].
pub(in crate::config) const EBPF_TRACE: Setting = row(
    "ebpf-trace",
    Holds::Switch,
    "",
    "Load the trace programs too; needs CAP_PERFMON",
);

/// All of it.
pub(in crate::config) const SETTINGS: &[Setting] = &[
    Setting {
        env_aliases: &["CULVERT_AGENT_ADDR", "PERISCOPE_AGENT_LISTEN_ADDR"],
        ..row("addr", Holds::Text, ":8443", "Public listener, for agents")
    },
    row(
        "internal-addr",
        Holds::Text,
        ":8080",
        "Internal listener, for clients",
    ),
    row(
        "user-addr",
        Holds::Text,
        "",
        "Listener of people alone, without client certificates; default: the public one, where it asks for none",
    ),
    row(
        "agent-mtls-addr",
        Holds::Text,
        "",
        "Listener of agents that show a certificate of the hub's agent CA, for /api/agents/connect; needs --control",
    ),
    row(
        "control-api",
        Holds::Text,
        "",
        "Where control's --listen is, http://127.0.0.1:PORT: its pages and API for people",
    ),
    row(
        "trusted-proxies",
        Holds::Text,
        "",
        "Addresses and networks, with commas, whose X-Forwarded-For is believed",
    ),
    row(
        "admin-addr",
        Holds::Text,
        "127.0.0.1:9901",
        "Admin listener",
    ),
    Setting {
        env_aliases: &["CLUSTERS", "PERISCOPE_CLUSTERS_FILE"],
        ..row(
            "clusters",
            Holds::Text,
            "",
            "Clusters file, or its JSON or YAML text: run without control",
        )
    },
    row(
        "control",
        Holds::Text,
        "",
        "Control's state link: unix:/path or https://host:port",
    ),
    row(
        "control-tls-cert",
        Holds::Text,
        "",
        "Client certificate for control over https",
    ),
    row(
        "control-tls-key",
        Holds::Text,
        "",
        "Key of --control-tls-cert",
    ),
    row(
        "control-tls-ca",
        Holds::Text,
        "",
        "Authority of control's certificate",
    ),
    row(
        "control-key",
        Holds::Text,
        "",
        "Control's state signing key (public); default: the first one seen, kept in --state-dir",
    ),
    row(
        "state-dir",
        Holds::Text,
        "",
        "Keeps a signed copy of the state, to start without control",
    ),
    row(
        "audit-dir",
        Holds::Text,
        "",
        "Keeps records of audited requests until control has them; default: audit in --state-dir",
    ),
    row(
        "audit-spool-max",
        Holds::Text,
        "1GiB",
        "Bytes that --audit-dir may hold, 8MiB to 1024GiB",
    ),
    row(
        "audit-when-full",
        Holds::Text,
        "refuse",
        "What becomes of an audited request whose record cannot be kept: refuse (503), warn (it goes on)",
    ),
    row(
        "accept-older-snapshot",
        Holds::Switch,
        "",
        "Take a state older than the copy on disk",
    ),
    row(
        "tls-cert",
        Holds::Text,
        "",
        "Certificate chain of both ports",
    ),
    row("tls-key", Holds::Text, "", "Private key of both ports"),
    row(
        "tls-client-ca",
        Holds::Text,
        "",
        "Require client certificates of this authority on both ports",
    ),
    row(
        "internal-plain",
        Holds::Switch,
        "",
        "No TLS on the internal port: its network is trusted (loopback, mesh)",
    ),
    row(
        "rate-limit",
        Holds::Text,
        "0",
        "Requests a second, 0 = no limit",
    ),
    row(
        "cluster-rate-limit",
        Holds::Text,
        "0",
        "Requests a second for each cluster, 0 = no limit",
    ),
    row(
        "cluster-max-requests",
        Holds::Text,
        "16384",
        "Requests at once for each cluster",
    ),
    row(
        "max-conns",
        Holds::Text,
        "1024",
        "Streams at once for each agent session",
    ),
    row(
        "max-body",
        Holds::Text,
        "0",
        "Longest request body, 0 = no limit",
    ),
    row(
        "response-head-timeout",
        Holds::Text,
        "0",
        "Longest wait for a response head, never on upgrades, 0 = no limit",
    ),
    row(
        "drain-grace",
        Holds::Text,
        "30s",
        "Time for requests in flight after SIGTERM, 0 to 24h",
    ),
    row(
        "io-engine",
        Holds::Text,
        "auto",
        "What engine and session threads run on: auto, io_uring, epoll",
    ),
    row(
        "allow-plaintext-data-channels",
        Holds::Switch,
        "",
        "The network to agents is trusted: no TLS on data channels, with agents that say so too",
    ),
    row(
        "engine-threads",
        Holds::Text,
        "",
        "Threads of the relay engine [default: as many as session threads]",
    ),
    row(
        "pairs-max",
        Holds::Text,
        "65536",
        "Pairs of sockets that the engine relays at once",
    ),
    row(
        "cluster-pairs-max",
        Holds::Text,
        "16384",
        "Pairs at once for each cluster",
    ),
    row(
        "pipes",
        Holds::Text,
        "192",
        "Pipes of 256 KiB for splicing, over all engine threads; 0 = copy",
    ),
    row(
        "spin",
        Holds::Text,
        "auto",
        "Spin for a moment after small messages where CPUs are free: auto, off",
    ),
    #[cfg(debug_assertions)]
    crate::config::DRAG,
    row(
        "threads",
        Holds::Text,
        "",
        "Session threads [default: CPUs allowed]",
    ),
    row(
        "memory-budget",
        Holds::Text,
        "1GiB",
        "Bytes that sessions and streams may buffer",
    ),
    EBPF,
    EBPF_TIER,
    EBPF_TRACE,
    row(
        "metrics-clusters-max",
        Holds::Text,
        "1024",
        "Labels of clusters in metrics, 4 of them for what is none, 8 to 8192; further clusters share _overflow",
    ),
    row(
        "metrics-cluster-histograms",
        Holds::Text,
        "auto",
        "Clusters with histograms of their own: auto (the first 32), all, none, or names with commas; others share _other",
    ),
    row(
        "flowlog",
        Holds::Text,
        "off",
        "One JSON line on standard output for each relayed connection that ended: off, slow, all",
    ),
    row(
        "flowlog-slow",
        Holds::Text,
        "100ms",
        "A connection is slow from this residence, mean round trip or time to connect on",
    ),
    Setting {
        env_aliases: &["PERISCOPE_LOG_LEVEL"],
        ..row(
            "log-level",
            Holds::Text,
            "info",
            "error, warn, info, debug or trace",
        )
    },
    row(
        "log-format",
        Holds::Text,
        "auto",
        "Log lines: auto, logfmt, json",
    ),
    row(
        "debuggable",
        Holds::Switch,
        "",
        "Allow core dumps and debuggers; they expose secrets",
    ),
];
