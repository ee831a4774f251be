//! What `culvert-dataplane relay` is told.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Command;
use culvert_config::{Holds, Layers, Program, Setting, row};
use culvert_engine::IoEngine;
use culvert_proto::relay::{BOUND_FACTOR, Limits};
use culvert_telemetry::log::LogFormat;

use super::reader::Reader;
use super::{ConfigError, EngineConfig, Problems, THREADS_MAX};

/// The verb.
pub(super) const VERB: &str = "relay";

/// This role. Its flags stand behind the verb.
pub const RELAY: Program = Program {
    name: "culvert-dataplane relay",
    about: "Relays pairs: two sides that only dial out meet here by the hash of their CA",
    version: env!("CARGO_PKG_VERSION"),
    file: "/etc/culvert/relay.toml",
    settings: SETTINGS,
    references: &[("metrics", crate::relay::describe_metrics)],
    verbs: |command| command,
};

/// Everything a relay was told.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Where both sides dial.
    pub addr: SocketAddr,
    /// Metrics and probes.
    pub admin_addr: SocketAddr,
    /// Takes drains, on this host alone; `None` is the admin listener, which then is
    /// on this host alone.
    pub drain_addr: Option<SocketAddr>,
    /// TLS of the outer leg; `None` is none.
    pub tls: Option<OuterTls>,
    /// Sides that only know the id are let in, and matched apart.
    pub open_join: bool,
    /// Of one source.
    pub connections_per_minute: u32,
    /// Pairs and waiters.
    pub limits: Limits,
    /// How long pairs may go on after SIGTERM.
    pub drain_grace: Duration,
    /// io_uring or epoll, for engine and session threads.
    pub io_engine: IoEngine,
    /// The relay engine.
    pub engine: EngineConfig,
    /// Session threads; `None` is one for each CPU allowed.
    pub threads: Option<usize>,
    /// The eBPF observer.
    #[cfg(feature = "hub")]
    pub observe: super::ObserveConfig,
    /// Level or filter of the log.
    pub log_level: String,
    /// Format of the log.
    pub log_format: LogFormat,
    /// Leave core dumps and debuggers allowed.
    pub debuggable: bool,
}

/// TLS of the outer leg.
#[derive(Debug, Clone)]
pub struct OuterTls {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Everything is copied through it; else it ends with MATCHED.
    pub keep: bool,
}

const SETTINGS: &[Setting] = &[
    row("addr", Holds::Text, ":443", "Listener for both sides"),
    row(
        "tls-cert",
        Holds::Text,
        "",
        "Certificate chain of the listener",
    ),
    row("tls-key", Holds::Text, "", "Private key of the listener"),
    row(
        "plain",
        Holds::Switch,
        "",
        "No TLS around introductions: whoever sees the path sees who meets whom",
    ),
    row(
        "outer-tls",
        Holds::Text,
        "end",
        "TLS of the listener ends when a pair is matched, or is kept for middleboxes that insist; agents need the same: end, keep",
    ),
    row(
        "open-join",
        Holds::Switch,
        "",
        "Let in sides that only know the info hash, which is no secret; they meet only their like",
    ),
    row(
        "admin-addr",
        Holds::Text,
        "127.0.0.1:9901",
        "Metrics and probes",
    ),
    row(
        "drain-addr",
        Holds::Text,
        "127.0.0.1:9902",
        "Takes POST /admin/drain, on loopback only; not used while --admin-addr is on loopback itself",
    ),
    row(
        "connections-per-minute",
        Holds::Text,
        "100",
        "Connections a minute from one IPv4 address or IPv6 /64, 10 to 1000",
    ),
    row(
        "pairs-max",
        Holds::Text,
        "1000",
        "Pairs at once, 100 to 10000; further ones wait, and so do those of a source that has as many pairs as places are free",
    ),
    row(
        "waiters-max",
        Holds::Text,
        "4096",
        "Sides that wait at once, 409 to 40960",
    ),
    row(
        "source-waiters-max",
        Holds::Text,
        "32",
        "Sides of one IPv4 address or IPv6 /64 that wait at once, 3 to 320",
    ),
    row(
        "drain-grace",
        Holds::Text,
        "30s",
        "Time for pairs after SIGTERM, 0 to 24h",
    ),
    row(
        "io-engine",
        Holds::Text,
        "auto",
        "What engine and session threads run on: auto, io_uring, epoll",
    ),
    row(
        "engine-threads",
        Holds::Text,
        "",
        "Threads of the relay engine [default: as many as session threads]",
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
    super::DRAG,
    #[cfg(feature = "hub")]
    super::hub::EBPF,
    #[cfg(feature = "hub")]
    super::hub::EBPF_TIER,
    #[cfg(feature = "hub")]
    super::hub::EBPF_TRACE,
    row(
        "threads",
        Holds::Text,
        "",
        "Session threads [default: CPUs allowed]",
    ),
    row(
        "log-level",
        Holds::Text,
        "info",
        "error, warn, info, debug or trace",
    ),
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
        "Allow core dumps and debuggers",
    ),
];

/// The verb as the program's help lists it.
pub(super) fn verb() -> Command {
    Command::new(VERB).about(RELAY.about)
}

impl RelayConfig {
    /// Reads what stands behind the verb, and `env`.
    ///
    /// # Errors
    /// [`ConfigError`], with every problem there is.
    pub fn read(
        flags: impl IntoIterator<Item = OsString>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        let argv = std::iter::once(RELAY.name.into()).chain(flags);
        let layers = Layers::read(&RELAY, argv, env)?;
        problems.0.extend(layers.problems.iter().cloned());
        let config = Reader {
            layers: &layers,
            problems: &mut problems,
        }
        .relay();
        match config {
            Some(config) if problems.0.is_empty() => Ok(config),
            _ => Err(problems.into()),
        }
    }
}

impl Reader<'_> {
    fn relay(&mut self) -> Option<RelayConfig> {
        let addr = self.address("addr");
        let admin_addr = self.address("admin-addr");
        let drain_addr = self.loopback("drain-addr");
        let tls = self.outer_tls();
        let limits = self.limits();
        let per_minute = self.bounded("connections-per-minute");
        let drain_grace = self.drain_grace();
        let io_engine = self.choice("io-engine", &IoEngine::CHOICES);
        let threads = self.number("threads", 1..=THREADS_MAX as u64);
        let log_format = self.log_format();
        #[cfg(feature = "hub")]
        let observe = self.observe();
        let limits = limits?;
        // The relay counts pairs itself; the engine gives a place back a moment later.
        let engine = self.engine(limits.pairs_max * 2, limits.pairs_max * 2);
        let admin_addr = admin_addr?;
        Some(RelayConfig {
            addr: addr?,
            admin_addr,
            drain_addr: Some(drain_addr?).filter(|_| !admin_addr.ip().to_canonical().is_loopback()),
            tls: tls?,
            open_join: self.switch("open-join"),
            connections_per_minute: per_minute?,
            limits,
            drain_grace: drain_grace?,
            io_engine: io_engine?,
            engine: engine?,
            threads: threads.map(|threads| threads as usize),
            #[cfg(feature = "hub")]
            observe: observe?,
            log_level: self.text("log-level")?.to_owned(),
            log_format: log_format?,
            debuggable: self.switch("debuggable"),
        })
    }

    fn limits(&mut self) -> Option<Limits> {
        let pairs_max = self.bounded("pairs-max");
        let waiters_max = self.bounded("waiters-max");
        let source_waiters_max = self.bounded("source-waiters-max");
        Some(Limits {
            waiters_max: waiters_max? as usize,
            source_waiters_max: source_waiters_max? as usize,
            pairs_max: pairs_max? as usize,
        })
    }

    /// A tenth to ten times the default.
    fn bounded(&mut self, name: &str) -> Option<u32> {
        let setting = SETTINGS.iter().find(|setting| setting.name == name)?;
        let default: u64 = setting.default.parse().ok()?;
        let factor = u64::from(BOUND_FACTOR);
        self.number(name, default / factor..=default * factor)
    }

    fn loopback(&mut self, name: &str) -> Option<SocketAddr> {
        let addr = self.address(name)?;
        if addr.ip().to_canonical().is_loopback() {
            return Some(addr);
        }
        self.problems.add(format!(
            "--{name}: {addr} can be reached from other hosts, which could drain this relay; use 127.0.0.1 or [::1]"
        ));
        None
    }

    /// `Some(None)` without TLS.
    fn outer_tls(&mut self) -> Option<Option<OuterTls>> {
        let plain = self.switch("plain");
        let names = ["tls-cert", "tls-key"];
        let given = names.map(|name| self.layers.get(name).is_some());
        let [cert, key] = names.map(|name| self.file(name));
        let keep = self.choice("outer-tls", &[("end", false), ("keep", true)]);
        if plain && (given != [false; 2] || keep == Some(true)) {
            let why = "--plain beside TLS flags: give --tls-cert and --tls-key, or --plain alone";
            self.problems.add(why.to_owned());
        }
        if plain {
            return Some(None);
        }
        for (name, given) in names.iter().zip(given) {
            if !given {
                self.problems.add(format!(
                    "--{name} is missing: a relay needs a certificate and a key, or --plain where \
                     nobody on the path may not know who meets whom"
                ));
            }
        }
        Some(Some(OuterTls {
            cert: cert?,
            key: key?,
            keep: keep?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<RelayConfig, String> {
        let read = RelayConfig::read(args.iter().map(OsString::from), &|_| None);
        read.map_err(|why| why.to_string())
    }

    fn problems(args: &[&str]) -> String {
        read(args).expect_err("these flags are wrong")
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = read(&["--plain"]).unwrap();
        assert_eq!(config.addr.to_string(), "[::]:443");
        assert_eq!(config.connections_per_minute, 100);
        assert_eq!(config.limits, Limits::default());
        assert!(config.tls.is_none() && !config.open_join);
        assert_eq!(config.drain_addr, None, "the admin listener is on loopback");
    }

    #[test]
    fn a_relay_does_not_start_without_tls_by_accident() {
        let said = problems(&[]);
        assert!(said.contains("--tls-cert is missing") && said.contains("--tls-key is missing"));
        let said = problems(&[
            "--tls-cert",
            "/nonexistent/c",
            "--tls-key",
            "/nonexistent/k",
        ]);
        assert!(said.contains("/nonexistent/c cannot be read"), "{said}");
        assert!(problems(&["--plain", "--outer-tls", "keep"]).contains("--plain beside TLS"));
        assert!(problems(&["--plain", "--outer-tls", "off"]).contains("end, keep"));
    }

    #[test]
    fn drains_are_taken_on_loopback_only() {
        let wide = ["--plain", "--admin-addr", "0.0.0.0:9901"];
        let config = read(&wide).unwrap();
        assert_eq!(config.drain_addr.unwrap().to_string(), "127.0.0.1:9902");
        for bad in ["0.0.0.0:9902", "[::]:9902", "192.0.2.1:9902", ":9902"] {
            let said = problems(&["--plain", "--drain-addr", bad]);
            assert!(said.contains("could drain this relay"), "{said}");
        }
        assert!(read(&["--plain", "--drain-addr", "[::1]:9902"]).is_ok());
    }

    #[test]
    fn limits_go_from_a_tenth_to_ten_times_the_default() {
        for (name, least, most) in [
            ("connections-per-minute", 10, 1_000),
            ("pairs-max", 100, 10_000),
            ("waiters-max", 409, 40_960),
            ("source-waiters-max", 3, 320),
        ] {
            let with = |value: u32| read(&["--plain", &format!("--{name}={value}")]);
            assert!(with(least).is_ok() && with(most).is_ok(), "{name}");
            assert!(
                with(least - 1).is_err() && with(most + 1).is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn the_verb_chooses_the_role_and_the_reference_lists_both() {
        use super::super::Job;
        let job = |argv: &[&str]| Job::read(argv.iter().map(OsString::from).collect(), &|_| None);
        let relay = job(&["culvert-dataplane", "relay", "--plain"]);
        assert!(matches!(relay, Ok(Job::Relay(_))));
        let printed = |what| match job(&["culvert-dataplane", "reference", what]) {
            Err(ConfigError::Usage(text)) => text.to_string(),
            _ => panic!("a reference is printed"),
        };
        let config = printed("config");
        assert!(config.contains("## culvert-dataplane relay\n"), "{config}");
        assert!(
            config.contains("| `--open-join` | `CULVERT_OPEN_JOIN` |"),
            "{config}"
        );
        let metrics = printed("metrics");
        assert!(metrics.contains("culvert_pair_refused_total"), "{metrics}");
        if cfg!(feature = "hub") {
            assert!(config.contains("`--internal-addr`") && metrics.contains("culvert_streams"));
        }
    }
}
