//! What the agent is told: the only reader of flags, environment and
//! configuration file. Everything is checked here, all problems are listed at
//! once, and nothing is dialled or bound before.

mod bridge;
mod broker;
mod build;
mod engine;
mod enrol;
mod forward;
mod hub;
mod pair;
mod reader;
mod service;
mod settings;
mod store;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_config::Layers;
use culvert_net::dial::{HubUrl, ProxyConfig};
use culvert_net::tls::ClientTlsOptions;
use culvert_proto::id::ClusterId;
use culvert_proto::token::TokenText;
use culvert_telemetry::log::LogFormat;
use ipnet::IpNet;

pub use crate::engine::EngineConfig;
use crate::enrol::Bootstrap;
use crate::mirror::Mirror;
use crate::services::NamedService;
use crate::target::Target;

pub use bridge::{BRIDGE, BridgeConfig};
pub use broker::{BROKER, BootConfig, BrokerConfig};
pub use forward::ForwardConfig;
pub(crate) use hub::hub_url;
pub use pair::{IdentityFiles, OuterOptions, PLACES_MAX, PairConfig, Way, relays};
pub use settings::PROGRAM;
pub use store::StateAt;

/// Hub addresses that may be configured.
pub const HUBS_MAX: usize = 16;
/// Most worker threads.
pub const THREADS_MAX: usize = 64;

/// A checked configuration. No `Debug`: it holds secrets.
pub struct Config {
    /// Where to dial, in order.
    pub hubs: Vec<HubUrl>,
    /// The cluster the credential must belong to.
    pub cluster: Option<ClusterId>,
    /// What proves who we are.
    pub credential: Credential,
    /// What to ask the hub for where there is no credential yet.
    pub wish: Option<Wish>,
    /// A certificate proves it, which is there or will be asked for first.
    pub enrolment: Option<Enrolment>,
    /// Where the state directory is kept as well.
    pub mirror: Option<Arc<Mirror>>,
    /// TLS towards the hub.
    pub hub_tls: ClientTlsOptions,
    /// `ws://` is allowed.
    pub allow_insecure_server: bool,
    /// The way out.
    pub proxy: ProxyConfig,
    /// The one service.
    pub target: Target,
    /// TLS towards the target, when it speaks it.
    pub target_tls: Option<ClientTlsOptions>,
    /// The services that routes may reach.
    pub services: Vec<NamedService>,
    /// Those that are not sealed may be served without TLS.
    pub allow_plaintext_data_channels: bool,
    /// Special addresses the target or a service may resolve to.
    pub allow_addresses: Vec<IpNet>,
    /// File of the bearer token for the target.
    pub service_account_token: Option<PathBuf>,
    /// Shown in the hub.
    pub region: Option<String>,
    /// Shown in the hub.
    pub labels: Vec<(String, String)>,
    /// Longest wait between two attempts.
    pub retry_max: Duration,
    /// Concurrent streams.
    pub streams_max: u32,
    /// Probes and metrics.
    pub health_addr: SocketAddr,
    /// Log filter.
    pub log_level: String,
    /// Log lines.
    pub log_format: LogFormat,
    /// Worker threads; 1 is a single-threaded runtime.
    pub threads: usize,
    /// What moves the bytes of services where nothing lies on them.
    pub engine: EngineConfig,
    /// Memory that all sessions together may use for streams.
    pub memory_budget_bytes: u64,
    /// Time for requests in flight after SIGTERM.
    pub drain_grace: Duration,
    /// Things an operator should hear about, logged at start.
    pub warnings: Vec<String>,
}

/// What proves who we are.
pub struct Credential {
    /// Token from flag, environment, file or join string.
    pub token: Option<TokenText>,
    /// The token came from a join string, which a kept one outranks.
    pub joined: bool,
    /// Where a rotated token is kept.
    pub state_dir: Option<PathBuf>,
}

/// What an agent without a credential asks for.
pub struct Wish {
    /// The cluster it would like to be of; empty = none named.
    pub cluster: String,
    /// Where the token is kept.
    pub state_dir: PathBuf,
}

/// Who we are by certificate.
pub struct Enrolment {
    /// Where key, certificate and CAs are kept.
    pub dir: PathBuf,
    /// With what they are got; `None` where they are there already.
    pub bootstrap: Option<Bootstrap>,
}

/// Why there is no configuration.
pub enum Refused {
    /// Help, version, or a command line that does not parse.
    Usage(clap::Error),
    /// Everything that is wrong.
    Problems(Vec<String>),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(usage) => usage.fmt(f),
            Self::Problems(problems) => {
                write!(f, "culvert-agent: the configuration is refused:")?;
                problems
                    .iter()
                    .try_for_each(|problem| write!(f, "\n  - {problem}"))
            }
        }
    }
}

/// What a process was asked to be.
pub enum Job {
    /// The agent.
    Agent(Box<Config>),
    /// A local port that leads to a service.
    Forward(Box<ForwardConfig>),
    /// The side of a pair that has the service.
    Bridge(Box<BridgeConfig>),
    /// The side of a pair that has the clients.
    Broker(Box<BrokerConfig>),
}

impl Job {
    /// Reads and checks everything. `env` looks up one environment variable.
    ///
    /// # Errors
    /// [`Refused`], with every problem found.
    pub fn load(
        argv: impl IntoIterator<Item = OsString>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Refused> {
        let mut argv: Vec<OsString> = argv.into_iter().collect();
        // The roles of a pair have tables of their own: nothing of the agent's means anything there.
        let role = argv.get(1).and_then(|verb| match verb.to_str() {
            Some(bridge::VERB) => Some(&BRIDGE),
            Some(broker::VERB) => Some(&BROKER),
            _ => None,
        });
        if let Some(program) = role {
            argv.remove(1);
            let layers = Layers::read(program, argv, &env).map_err(Refused::Usage)?;
            return match program.name == BRIDGE.name {
                true => bridge::build(layers).map(|it| Self::Bridge(Box::new(it))),
                false => broker::build(layers).map(|it| Self::Broker(Box::new(it))),
            };
        }
        let layers = Layers::read(&PROGRAM, argv, &env).map_err(Refused::Usage)?;
        match layers.matches.subcommand_name() {
            Some(forward::VERB) => {
                forward::build(layers, &env).map(|it| Self::Forward(Box::new(it)))
            }
            Some(verb @ (bridge::VERB | broker::VERB)) => Err(Refused::Problems(vec![format!(
                "{verb} has flags of its own: write the verb first, culvert-agent {verb} ..."
            )])),
            _ => build::build(layers, &env).map(|it| Self::Agent(Box::new(it))),
        }
    }

    /// The level and form of the log, and the worker threads.
    #[must_use]
    pub fn process(&self) -> (&str, LogFormat, usize) {
        match self {
            Self::Agent(it) => (&it.log_level, it.log_format, it.threads),
            Self::Forward(it) => (&it.log_level, it.log_format, 1),
            Self::Bridge(it) => (&it.pair.log_level, it.pair.log_format, it.pair.threads),
            Self::Broker(it) => (&it.pair.log_level, it.pair.log_format, it.pair.threads),
        }
    }

    /// Reads the command line and environment of this process.
    ///
    /// # Errors
    /// As [`Job::load`].
    pub fn from_process() -> Result<Self, Refused> {
        Self::load(std::env::args_os(), |name| std::env::var(name).ok())
    }
}

/// For programs without verbs.
fn no_verbs(command: clap::Command) -> clap::Command {
    command
}
