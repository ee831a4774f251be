//! What the data plane of a hub is told.

mod audit;
mod build;
mod observe;
mod settings;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use culvert_config::Layers;
use culvert_engine::IoEngine;
use culvert_telemetry::log::LogFormat;

use super::reader::Reader;
use super::{ConfigError, EngineConfig, PROGRAM, Problems};

pub use audit::{AuditConfig, WhenFull};
pub use observe::{CLUSTERS_MAX, FlowLogConfig, FlowLogMode, MetricsConfig, ObserveConfig};
pub(super) use settings::{EBPF, EBPF_TIER, EBPF_TRACE, SETTINGS};

/// Highest limit of streams for each session (contract A-16).
pub const STREAMS_PER_SESSION_MAX: u32 = 16_384;

/// Everything the data plane was told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Public listener: agent paths and `/healthz`.
    pub addr: SocketAddr,
    /// Internal listener: `/tunnel/{cluster}/`, metrics, probes.
    pub internal_addr: SocketAddr,
    /// People's own listener, without client certificates.
    pub user_addr: Option<SocketAddr>,
    /// Listener of agents that show a certificate of the hub's agent CA.
    pub agent_mtls_addr: Option<SocketAddr>,
    /// Control's API, for its pages on the people's listener.
    pub control_api: Option<SocketAddr>,
    /// Proxies that are believed about whom they speak for.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Admin listener: metrics, probes, connections, drain.
    pub admin_addr: SocketAddr,
    /// Where the state comes from.
    pub state: StateSource,
    /// Where the signed copy of the state is kept.
    pub state_dir: Option<PathBuf>,
    /// Take a state older than the one on disk.
    pub accept_older_snapshot: bool,
    /// TLS of the public and the internal listener.
    pub tls: Option<Tls>,
    /// The internal listener speaks plain HTTP all the same.
    pub internal_plain: bool,
    /// Requests a second through this data plane; `None` is no limit.
    pub rate_limit: Option<u32>,
    /// Requests a second for each cluster that has no limit of its own.
    pub cluster_rate_limit: Option<u32>,
    /// Requests at once for each cluster that has no limit of its own.
    pub cluster_requests_max: u32,
    /// Streams at once for each session.
    pub streams_max: u32,
    /// Longest request body in bytes; `None` is no limit.
    pub body_bytes_max: Option<u64>,
    /// How long a service may take for its response head; `None` is for ever.
    pub response_head_timeout: Option<Duration>,
    /// How long requests in flight may take after SIGTERM.
    pub drain_grace: Duration,
    /// Data channels without TLS for payloads that are not sealed, with agents
    /// that allow it too: the network between is trusted.
    pub allow_plaintext_data_channels: bool,
    /// io_uring or epoll, for engine and session threads.
    pub io_engine: IoEngine,
    /// The relay engine.
    pub engine: EngineConfig,
    /// Session threads; `None` is one for each CPU allowed.
    pub threads: Option<usize>,
    /// Bytes that all sessions and streams may buffer.
    pub memory_budget: u64,
    /// Records of audited requests.
    pub audit: AuditConfig,
    /// The eBPF observer.
    pub observe: ObserveConfig,
    /// How much metrics tell of clusters.
    pub metrics: MetricsConfig,
    /// Lines for relayed connections that ended.
    pub flowlog: FlowLogConfig,
    /// Level or filter of the log.
    pub log_level: String,
    /// Format of the log.
    pub log_format: LogFormat,
    /// Leave core dumps and debuggers allowed.
    pub debuggable: bool,
}

/// Where clusters and tokens come from.
#[derive(Debug, Clone)]
pub enum StateSource {
    /// Control, over its state link.
    Control(ControlLink),
    /// A file, without control.
    ClustersFile(PathBuf),
    /// JSON or YAML given in the setting itself; no debug output, it holds tokens.
    ClustersText(ClustersText),
}

/// The text of a clusters file.
#[derive(Clone)]
pub struct ClustersText(pub String);

impl fmt::Debug for ClustersText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClustersText")
    }
}

/// How control is reached.
#[derive(Debug, Clone)]
pub struct ControlLink {
    /// `unix:/path` or `https://host:port`.
    pub addr: String,
    /// Client certificate chain and key, for `https`.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Authority of control's certificate.
    pub ca: Option<PathBuf>,
    /// File with control's signing key; without it the first key seen is kept
    /// in the state directory.
    pub key: Option<PathBuf>,
}

/// TLS of the two ports.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Authority of client certificates, which are then required.
    pub client_ca: Option<PathBuf>,
}

impl Config {
    /// Reads `argv` (with the program's name first) and `env`.
    ///
    /// # Errors
    /// [`ConfigError`], with every problem there is.
    pub fn read(
        argv: impl IntoIterator<Item = OsString>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        let layers = Layers::read(&PROGRAM, argv, env)?;
        problems.0.extend(layers.problems.iter().cloned());
        let config = Reader {
            layers: &layers,
            problems: &mut problems,
        }
        .hub();
        match config {
            Some(config) if problems.0.is_empty() => Ok(config),
            _ => Err(problems.into()),
        }
    }
}

#[cfg(test)]
mod tests;
