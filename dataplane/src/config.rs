//! Flags, environment and file: the only reader of them in this process.
//!
//! Everything is parsed and every file is looked at before a port is bound, and
//! all that is wrong is said at once. In doubt about authentication the process
//! does not start.

#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "hub")]
mod probe;
mod program;
mod reader;
#[cfg(feature = "relay")]
mod relay;
mod units;

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

#[cfg(feature = "hub")]
pub use hub::{
    AuditConfig, ClustersText, Config, ControlLink, FlowLogConfig, FlowLogMode, MetricsConfig,
    ObserveConfig, STREAMS_PER_SESSION_MAX, StateSource, Tls, WhenFull,
};
#[cfg(feature = "hub")]
pub use probe::ProbeConfig;
pub use program::PROGRAM;
#[cfg(feature = "relay")]
pub use relay::{OuterTls, RELAY, RelayConfig};

/// Most pairs of the engine.
pub const PAIRS_MAX: usize = 1 << 20;
/// Most pipes of the engine.
pub const PIPES_MAX: usize = 1 << 16;
/// Most session threads.
pub const THREADS_MAX: usize = 256;
/// Longest delay that tests put into the engine, microseconds.
#[cfg(debug_assertions)]
const DRAG_US_MAX: u64 = 1_000_000;
/// For tests, and in no release build.
#[cfg(debug_assertions)]
pub(in crate::config) const DRAG: culvert_config::Setting =
    culvert_config::row("engine-drag-us", culvert_config::Holds::Text, "0", "");
/// Longest drain grace.
pub const DRAIN_GRACE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What the relay engine may use.
#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// Threads; `None` is as many as session threads.
    pub threads: Option<usize>,
    /// Pairs at once.
    pub pairs_max: usize,
    /// Pairs at once for each cluster.
    pub cluster_pairs_max: usize,
    /// Pipes, over all threads.
    pub pipes: usize,
    /// Spin after small messages where there are CPUs for it.
    pub spin: bool,
    /// What tests have every thread wait between taking bytes and giving them on.
    #[cfg(debug_assertions)]
    pub drag: Duration,
}

/// What a process was asked to be.
pub enum Job {
    /// The data plane of a hub.
    #[cfg(feature = "hub")]
    Hub(Box<Config>),
    /// A relay of pairs.
    #[cfg(feature = "relay")]
    Relay(Box<RelayConfig>),
    /// Tells what the host permits the observer, and ends.
    #[cfg(feature = "hub")]
    Probe(ProbeConfig),
}

/// What is wrong with the configuration: all of it.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: String) {
        self.0.push(problem);
    }

    fn take<T>(&mut self, name: &str, got: Option<Result<T, String>>) -> Option<T> {
        match got? {
            Ok(value) => Some(value),
            Err(why) => {
                self.add(format!("{name}: {why}"));
                None
            }
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the configuration has {} problem(s):", self.0.len())?;
        self.0
            .iter()
            .try_for_each(|problem| writeln!(f, "  - {problem}"))
    }
}

impl std::error::Error for Problems {}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag clap does not know, or a wish for help or the version.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// Values that cannot be used.
    #[error(transparent)]
    Problems(#[from] Problems),
}

impl Job {
    /// Reads the process's own flags and environment.
    ///
    /// # Errors
    /// [`ConfigError`], with every problem there is.
    pub fn from_process() -> Result<Self, ConfigError> {
        Self::read(std::env::args_os().collect(), &|name| {
            std::env::var(name).ok().filter(|value| !value.is_empty())
        })
    }

    /// Reads `argv` (with the program's name first) and `env`.
    ///
    /// # Errors
    /// [`ConfigError`], with every problem there is.
    pub fn read(
        argv: Vec<OsString>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        #[cfg(feature = "relay")]
        if argv.get(1).is_some_and(|verb| verb == relay::VERB) {
            let flags = argv.into_iter().skip(2);
            return RelayConfig::read(flags, env).map(|it| Self::Relay(Box::new(it)));
        }
        #[cfg(feature = "hub")]
        if argv.get(1).is_some_and(|verb| verb == probe::VERB) {
            return ProbeConfig::read(argv.into_iter().skip(2)).map(Self::Probe);
        }
        #[cfg(feature = "hub")]
        return Config::read(argv, env).map(|it| Self::Hub(Box::new(it)));
        #[cfg(not(feature = "hub"))]
        return Err(program::without_verb(argv, env));
    }
}
