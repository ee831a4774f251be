//! `culvert-agent forward`: a local port that leads to a service of a cluster,
//! with a person's token.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use culvert_engine::Engine;
use culvert_engine::legs::Leg;
use culvert_net::dial::{Dialer, Link};
use culvert_net::listen::{ListenOptions, Listener};
use culvert_net::relay::{Early, arm};
use culvert_net::tls::{ClientTls, Reload, TlsError, keep_fresh};
use culvert_net::transport::{ConnectError, connect_forward};
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::config::ForwardConfig;
use crate::engine::start_engine;
use crate::flow::Mover;
use crate::metrics::AgentMetrics;

/// Local connections at once; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 1024;
/// Longest wait for the hub's answer, which waits for the service itself.
pub const ANSWER_MAX: Duration = Duration::from_secs(45);

/// Why nothing is forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// A TLS file changed for the worse since the configuration was checked.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The local address cannot be listened on.
    #[error("{0}; choose another --listen")]
    Listen(std::io::Error),
    /// The relay engine cannot start.
    #[error("the relay engine cannot start: {0}")]
    Engine(std::io::Error),
}

struct Forward {
    dialer: Dialer,
    config: ForwardConfig,
    path: String,
    mover: Arc<Mover>,
}

/// Forwards until `shutdown` drains and the connections have ended, or their time.
///
/// # Errors
/// [`ForwardError`]; nothing was accepted then.
pub async fn run(config: ForwardConfig, shutdown: &Shutdown) -> Result<(), ForwardError> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let tls = Arc::new(ClientTls::load(config.hub_tls.clone())?);
    tokio::spawn(keep_fresh(tls.clone() as Arc<dyn Reload>, |result| {
        if let Err(why) = result {
            tracing::warn!(%why, "changed TLS files not used; the old ones stay");
        }
    }));
    let metrics = Arc::new(AgentMetrics::new(config.cluster.as_str()));
    let engine = engine(&config, &metrics).map_err(ForwardError::Engine)?;
    let options = ListenOptions {
        reuse_port: false,
        ..ListenOptions::default()
    };
    let bound = Listener::bind(config.listen, options).map_err(ForwardError::Listen)?;
    let listener = bound.start().map_err(ForwardError::Listen)?;
    let addr = listener.local_addr().map_err(ForwardError::Listen)?;
    say(&config, addr);
    let forward = Arc::new(Forward {
        dialer: Dialer::new(tls, config.proxy.clone()),
        path: format!("/forward/{}/{}", config.cluster, config.service.as_str()),
        mover: Arc::new(Mover::new(engine, metrics).between([Leg::Client, Leg::Data])),
        config,
    });
    let (places, opening) = (
        Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        TaskTracker::new(),
    );
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (listener.accept().await.0, place)
        };
        let (local, place) = tokio::select! {
            next = next => next,
            () = shutdown.reached(Phase::Draining) => break,
        };
        let forward = forward.clone();
        opening.spawn(async move {
            // A connection that runs costs no more than the wait for its end.
            let running = Box::pin(forward.open(local)).await;
            if let Some(running) = running {
                let _ = running.await;
            }
            drop(place);
        });
    }
    drop(listener);
    opening.close();
    let grace = forward.config.drain_grace;
    tracing::info!(
        connections = opening.len(),
        grace_s = grace.as_secs(),
        "stopping"
    );
    tokio::select! {
        _ = timeout(grace, opening.wait()) => {}
        () = shutdown.reached(Phase::Stopped) => {}
    }
    forward.mover.cut();
    Ok(())
}

#[expect(
    clippy::print_stdout,
    reason = "the one line that the person waits for"
)]
fn say(config: &ForwardConfig, addr: std::net::SocketAddr) {
    let (service, cluster) = (config.service.as_str(), &config.cluster);
    let hub = config.hubs.first().map(|hub| hub.authority());
    println!(
        "forwarding {addr} to service {service} of cluster {cluster} through {}",
        hub.unwrap_or_default()
    );
}

/// Only what reaches the hub without TLS can be spliced.
fn engine(config: &ForwardConfig, metrics: &AgentMetrics) -> std::io::Result<Option<Engine>> {
    if config.hubs.iter().all(|hub| hub.is_tls()) {
        return Ok(None);
    }
    start_engine(config.engine, 1, metrics).map(Some)
}

impl Forward {
    /// Connects one local connection, or says why not and resets it.
    async fn open(&self, local: TcpStream) -> Option<JoinHandle<()>> {
        let config = &self.config;
        // Whatever happens before there is a service must not look like its end.
        if let Err(why) = arm(local.as_fd()) {
            tracing::debug!(%why, "a local connection left");
            return None;
        }
        let asked = connect_forward(&self.dialer, &config.hubs, &self.path, &config.token);
        let (seen, fix) = match timeout(ANSWER_MAX, asked).await {
            Ok(Ok(forwarded)) => {
                let early = Early {
                    to_client: forwarded.first,
                    ..Early::default()
                };
                let local = Link::Plain(local);
                return self.mover.start(local, forwarded.link, early);
            }
            Ok(Err(why)) => (why.to_string(), remedy(&why)),
            Err(_) => {
                let seen = format!("the hub did not answer within {ANSWER_MAX:?}");
                (seen, "look at the hub and at the service")
            }
        };
        tracing::error!(seen, fix, "connection not forwarded");
        None
    }
}

/// What the person can do.
fn remedy(why: &ConnectError) -> &'static str {
    let ConnectError::Refused(refusal) = why else {
        return why.close_reason().fix();
    };
    match refusal.status {
        401 => {
            "the token is unknown, revoked or expired: ask for a personal token (culvert personal-token mint)"
        }
        403 => {
            "the token does not reach this service: ask for one that names it, or let the agent serve it (--service)"
        }
        404 => {
            "the hub knows no such cluster or service, or forwards nothing: look at --cluster, --service and the hub's address"
        }
        503 => {
            "no agent of the cluster takes the connection now: look at culvert status, then try again"
        }
        502 | 504 => {
            "the agent did not reach the service: look at the service and at the agent's log"
        }
        _ => why.close_reason().fix(),
    }
}
