//! From a checked configuration to a running agent: wiring only.

use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use culvert_mux::Budget;
use culvert_net::crypto::random_bytes;
use culvert_net::dial::{Backoff, Dialer, Setback};
use culvert_net::tls::{ClientTls, ClientTlsOptions, Reload, TlsError, keep_fresh};
use culvert_proto::control::AgentFacts;
use culvert_proto::hello::{AgentHello, Caps};
use culvert_proto::id::InstanceId;
use culvert_telemetry::lifecycle::{self, Phase, Shutdown};
use culvert_telemetry::log::{self, LogConfig};
use tokio_util::task::AbortOnDropHandle;

use crate::channel::Opener;
use crate::config::{Config, Enrolment, Job};
use crate::connect::{Connector, Plan};
use crate::credential::Tokens;
use crate::device::{self, DeviceError};
use crate::engine::start_engine;
use crate::enrol::{self, Identity, IdentityError, Known, RegisterError};
use crate::flow::Flows;
use crate::forward;
use crate::health::Health;
use crate::metrics::AgentMetrics;
use crate::pair;
use crate::serve::Service;
use crate::services::Services;
use crate::session::Shared;
use crate::upstream::allow::AllowList;
use crate::upstream::dial::Dialer as TargetDialer;
use crate::upstream::http::Upstream;
use crate::upstream::kube::TokenFile;
use crate::upstream::resolve::{Resolve, SystemResolver};

/// How often idle connections are looked over and the loop shows that it runs.
const TICK: Duration = Duration::from_secs(1);

/// Longest wait between two tries to enrol (P-27.8).
const ENROL_RETRY_MAX: Duration = Duration::from_secs(30);

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A TLS file changed for the worse since the configuration was checked.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The state directory changed for the worse since then.
    #[error("state directory: {0}")]
    State(String),
    /// The hub gave no token.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The hub gives no certificate.
    #[error(transparent)]
    Enrol(RegisterError),
    /// The relay engine cannot start.
    #[error("the relay engine cannot start: {0}")]
    Engine(std::io::Error),
    /// The health address cannot be listened on.
    #[error("cannot serve /healthz and /metrics: {0}; set --health-addr")]
    Health(std::io::Error),
}

/// Runs a process: log, runtime, signals, and what it was asked to be.
///
/// # Errors
/// Why it could not start.
pub fn run_process(job: Job) -> Result<(), Box<dyn std::error::Error>> {
    let (level, format, threads) = job.process();
    log::init(&LogConfig {
        level: level.to_owned(),
        format,
        process: "culvert-agent",
    })?;
    lifecycle::forbid_dumps()?;
    // One thread needs no scheduler that shares work.
    let mut builder = match threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .worker_threads(threads.max(1))
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = lifecycle::signals()?;
        match job {
            Job::Agent(config) => Ok(run(*config, &shutdown).await?),
            Job::Forward(config) => Ok(forward::run(*config, &shutdown).await?),
            Job::Bridge(config) => Ok(pair::bridge::run(*config, &shutdown).await?),
            Job::Broker(config) => Ok(pair::broker::run(*config, &shutdown).await?),
        }
    })
}

/// Runs the agent until `shutdown` drains and what was in flight has finished.
///
/// # Errors
/// [`StartError`]; nothing was dialled then.
pub async fn run(config: Config, shutdown: &Shutdown) -> Result<(), StartError> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let cluster = config
        .cluster
        .as_ref()
        .map_or("", |cluster| cluster.as_str());
    let metrics = Arc::new(AgentMetrics::new(cluster));
    // Before anything that waits for people: a probe must not end an agent that does.
    let started = Arc::new(OnceLock::new());
    let _health = answer_probes(config.health_addr, &metrics, &started)?;
    let _mirrored = config
        .mirror
        .clone()
        .map(|mirror| AbortOnDropHandle::new(tokio::spawn(async move { mirror.run().await })));
    let enrolled = match &config.enrolment {
        Some(enrolment) => tokio::select! {
            known = enrolled(enrolment, &config) => Some((enrolment.dir.clone(), known?)),
            () = shutdown.reached(Phase::Draining) => return Ok(()),
        },
        None => None,
    };
    let hub_tls = match &enrolled {
        Some((dir, _)) => enrol::session_tls(dir, &config.hub_tls),
        None => config.hub_tls.clone(),
    };
    let hub_tls = Arc::new(ClientTls::load(hub_tls)?);
    let identity = enrolled.map(|(dir, known)| {
        let expiry = metrics.certificate_expiry.clone();
        Arc::new(Identity::new(dir, known, hub_tls.clone(), expiry))
    });
    let target_tls = config.target_tls.clone().map(load).transpose()?;
    for tls in std::iter::once(&hub_tls).chain(&target_tls) {
        tokio::spawn(keep_fresh(tls.clone() as Arc<dyn Reload>, reloaded));
    }
    let dialer = Arc::new(Dialer::new(hub_tls, config.proxy.clone()));
    if let Some(wish) = &config.wish
        && !device::ask(&config, wish, &dialer, shutdown).await?
    {
        return Ok(());
    }
    let shared = Arc::new(Shared {
        identity,
        mirror: config.mirror.clone(),
        ..shared(&config, target_tls, metrics, &dialer)?
    });
    let _ = started.set(shared.clone());
    shared.keep_soon();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        threads = config.threads,
        target_addr = shared.service.upstream().target().address(),
        services = ?shared.flows.services().names().collect::<Vec<_>>(),
        hubs = config.hubs.len(),
        "culvert-agent starts"
    );
    Connector::new(plan(config, dialer, &shared), shared)
        .run(shutdown)
        .await;
    Ok(())
}

/// Answers probes and scrapes as long as the result is kept; ready is what `started` holds and says
/// so.
fn answer_probes(
    addr: SocketAddr,
    metrics: &AgentMetrics,
    started: &Arc<OnceLock<Arc<Shared>>>,
) -> Result<[AbortOnDropHandle<()>; 2], StartError> {
    let ready = started.clone();
    let ready = move || ready.get().is_some_and(|shared| shared.is_established());
    let health = Health::bind(addr, metrics.registry.clone(), ready).map_err(StartError::Health)?;
    let (ticking, started) = (health.ticker(), started.clone());
    let ticks = async move {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            ticking.tick();
            if let Some(shared) = started.get() {
                shared.service.upstream().sweep();
                shared.flows.mover().count();
            }
        }
    };
    let tasks = [tokio::spawn(ticks), tokio::spawn(health.serve())];
    Ok(tasks.map(AbortOnDropHandle::new))
}

/// The certificate that is there, or that the hub makes for the bootstrap token.
async fn enrolled(enrolment: &Enrolment, config: &Config) -> Result<Known, StartError> {
    let failed = |why: IdentityError| StartError::State(why.to_string());
    let Some(bootstrap) = &enrolment.bootstrap else {
        let known = enrol::read(&enrolment.dir).map_err(failed)?;
        return known.ok_or_else(|| StartError::State("the certificate is gone".to_owned()));
    };
    let tls = Arc::new(ClientTls::load(bootstrap.tls.clone())?);
    let dialer = Dialer::new(tls, config.proxy.clone());
    let mut backoff = Backoff::new(ENROL_RETRY_MAX);
    loop {
        let why = match enrol::register(&dialer, bootstrap).await {
            Ok(got) => {
                enrol::keep(&enrolment.dir, &got.key, &got.chain, &got.ca_bundle)
                    .map_err(failed)?;
                if let Some(mirror) = &config.mirror {
                    mirror.keep_soon();
                }
                let known = enrol::read(&enrolment.dir).map_err(failed)?;
                let known = known.ok_or_else(|| StartError::State("nothing was kept".into()))?;
                tracing::info!(
                    cluster = %known.cluster, until_unix_s = known.validity.until_unix_s,
                    "enrolled: the bootstrap token is not needed any more"
                );
                return Ok(known);
            }
            Err(why) if why.is_final() => return Err(StartError::Enrol(why)),
            Err(why) => why,
        };
        let wait = backoff.next(Setback::Ordinary, u64::from_ne_bytes(random_bytes()));
        let wait = why.retry_after().unwrap_or(wait);
        let retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(%why, retry_in_ms, "not enrolled yet");
        tokio::time::sleep(wait).await;
    }
}

fn load(options: ClientTlsOptions) -> Result<Arc<ClientTls>, TlsError> {
    ClientTls::load(options).map(Arc::new)
}

fn reloaded(result: Result<(), TlsError>) {
    match result {
        Ok(()) => tracing::info!("TLS files read again"),
        Err(why) => tracing::warn!(%why, "changed TLS files not used; the old ones stay"),
    }
}

fn shared(
    config: &Config,
    target_tls: Option<Arc<ClientTls>>,
    metrics: Arc<AgentMetrics>,
    dialer: &Arc<Dialer>,
) -> Result<Shared, StartError> {
    let credential = &config.credential;
    let token = credential.token.as_ref().map(|token| token.duplicate());
    // A token of earlier times is not shown beside a certificate.
    let dir = credential.state_dir.clone();
    let dir = dir.filter(|_| config.enrolment.is_none());
    let tokens = Tokens::load(token, credential.joined, dir).map_err(StartError::State)?;
    let target = Arc::new(config.target.clone());
    let allow = AllowList::new(&target, config.allow_addresses.clone());
    let resolver: Arc<dyn Resolve> = Arc::new(SystemResolver);
    let services = Services::new(
        &config.services,
        config.allow_plaintext_data_channels,
        &config.allow_addresses,
        &resolver,
    );
    let engine = match services.is_empty() {
        true => None,
        false => Some(
            start_engine(config.engine, config.threads, &metrics).map_err(StartError::Engine)?,
        ),
    };
    let flows = Arc::new(Flows::new(services, engine, metrics.clone()));
    let target_dialer = TargetDialer::new(target.clone(), allow, resolver, target_tls);
    let token = config.service_account_token.clone().map(TokenFile::new);
    let in_flight_max = config.streams_max as usize;
    let upstream = Upstream::new(target, target_dialer, token, metrics.clone(), in_flight_max);
    let upstream = Arc::new(upstream);
    Ok(Shared {
        service: Arc::new(Service::new(upstream, metrics.clone())),
        opener: Arc::new(Opener::new(dialer.clone(), flows.clone())),
        flows,
        tokens: Arc::new(tokens),
        identity: None,
        mirror: None,
        metrics,
        streams_max: config.streams_max,
        established: AtomicUsize::new(0),
    })
}

fn plan(config: Config, dialer: Arc<Dialer>, shared: &Shared) -> Plan {
    let mut caps = Caps::STATUS.with(Caps::DRAIN).with(Caps::SMALL_WINDOW);
    if shared.identity.is_some() {
        caps = caps.with(Caps::RENEW);
    } else if shared.tokens.can_rotate() {
        caps = caps.with(Caps::ROTATE);
    }
    let services = shared.flows.services();
    if !services.is_empty() {
        caps = caps.with(Caps::CHANNEL);
        if config.allow_plaintext_data_channels {
            caps = caps.with(Caps::PLAIN_CHANNEL);
        }
    }
    let targets = [
        crate::target::DEFAULT_NAME.to_owned(),
        shared.service.upstream().target().address(),
    ];
    let services = services.names().map(str::to_owned);
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Plan {
        hello: AgentHello {
            instance: Some(InstanceId(*uuid::Uuid::now_v7().as_bytes())),
            version: version.clone(),
            caps,
            cluster: config.cluster,
        },
        facts: AgentFacts {
            version,
            targets: targets.into_iter().chain(services).collect(),
            streams_max: Some(config.streams_max),
            region: config.region.unwrap_or_default(),
            labels: config.labels,
            platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        },
        dialer,
        hubs: config.hubs,
        allow_insecure_server: config.allow_insecure_server,
        budget: Arc::new(Budget::new(config.memory_budget_bytes)),
        retry_max: config.retry_max,
        drain_grace: config.drain_grace,
        random: || u64::from_ne_bytes(random_bytes()),
    }
}
