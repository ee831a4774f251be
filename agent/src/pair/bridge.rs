//! `culvert-agent bridge`: waits for its broker everywhere it may come from, and connects what it
//! sends to the one service.

use std::sync::Arc;
use std::time::Duration;

use culvert_mux::Budget;
use culvert_net::listen::{Acceptor, ListenOptions, Listener};
use culvert_net::dial::Link;
use culvert_net::tls::pair::Side;
use culvert_proto::pair::{ALPN_PAIR, ALPN_PAIR_RAW};
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::party::Own;
use super::post::{Met, Post};
use super::reach::Reach;
use super::welcome::Welcome;
use super::{PairError, SPARE, service_name};
use crate::config::{BridgeConfig, Way};
use crate::flow::Flows;
use crate::health::Health;
use crate::metrics::AgentMetrics;
use crate::services::{NamedService, Services};
use crate::upstream::resolve::{Resolve, SystemResolver};

/// What a bridge speaks; the broker chooses.
const ALPNS: &[&[u8]] = &[ALPN_PAIR, ALPN_PAIR_RAW];
/// How often the loop shows that it runs.
const TICK: Duration = Duration::from_secs(1);
/// Connections that met the broker and were not taken yet.
const MET_MAX: usize = 16;

/// Runs until `shutdown` drains and the connections have ended, or their time.
///
/// # Errors
/// [`PairError`]; nothing was accepted or dialled then.
pub async fn run(config: BridgeConfig, shutdown: &Shutdown) -> Result<(), PairError> {
    for warning in &config.pair.warnings {
        tracing::warn!("{warning}");
    }
    let metrics = Arc::new(AgentMetrics::new(""));
    let welcome = welcome(&config, &metrics);
    let own = config.pair.identity.clone().map(|files| {
        Own::load(Side::Bridge, ALPNS, files, config.pair.info_hash).map(Arc::new)
    });
    let own = own.transpose()?;
    let ready = metrics.clone();
    let listens = matches!(config.pair.way, Way::Listen(_));
    let health = Health::bind(
        config.pair.health_addr,
        metrics.registry.clone(),
        move || listens || ready.pair().waiting() > 0 || ready.pair().standing() > 0,
    )
    .map_err(PairError::Health)?;
    let grace = config.pair.drain_grace;
    let to = config.to.address();
    let mut waiting = Vec::new();
    if let Some(own) = own {
        tracing::info!(info_hash = %own.party().info_hash, to, "bridge starts");
        waiting.push(wait(config.pair.way, own, metrics, welcome.clone())?);
    }
    let ticking = health.ticker();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            ticking.tick();
        }
    });
    let serving = tokio::spawn(health.serve());
    shutdown.reached(Phase::Draining).await;
    for task in &waiting {
        task.abort();
    }
    welcome.retire();
    tracing::info!(grace_s = grace.as_secs(), "stopping");
    tokio::select! {
        _ = timeout(grace, welcome.idle()) => {}
        () = shutdown.reached(Phase::Stopped) => {}
    }
    welcome.cut();
    serving.abort();
    Ok(())
}

fn welcome(config: &BridgeConfig, metrics: &Arc<AgentMetrics>) -> Arc<Welcome> {
    let resolver: Arc<dyn Resolve> = Arc::new(SystemResolver);
    let named = NamedService {
        name: service_name(),
        sealed: false,
        target: config.to.clone(),
    };
    let services = Services::new(&[named], false, &config.allow_addresses, &resolver);
    let flows = Arc::new(Flows::new(services, None, metrics.clone()));
    let budget = Arc::new(Budget::new(config.pair.memory_budget_bytes));
    Arc::new(Welcome::new(flows, budget, config.pair.streams_max))
}

/// Waits for the broker in a task of its own.
fn wait(
    way: Way,
    own: Arc<Own>,
    metrics: Arc<AgentMetrics>,
    welcome: Arc<Welcome>,
) -> Result<JoinHandle<()>, PairError> {
    let (places, reach) = match way {
        Way::Listen(addr) => {
            let options = ListenOptions {
                reuse_port: false,
                ..ListenOptions::default()
            };
            let failed = |why| PairError::Listen(why, "listen-pair");
            let listener = Listener::bind(addr, options).map_err(failed)?;
            let acceptor = listener.start().map_err(failed)?;
            return Ok(tokio::spawn(listen(acceptor, own, welcome)));
        }
        Way::Dial(places) => (places, Reach::Called),
        Way::Relay { .. } => unreachable!("soon"),
    };
    let post = Post {
        places,
        reach,
        spare: SPARE,
        stagger: Duration::ZERO,
        resolver: Arc::new(SystemResolver),
        metrics,
    };
    Ok(tokio::spawn(async move {
        let (out, mut met) = mpsc::channel::<Met>(MET_MAX);
        let taking = async {
            while let Some(Met { link, party }) = met.recv().await {
                welcome.take(link, party, true);
            }
        };
        tokio::join!(post.keep(|| own.party(), &out), taking);
    }))
}

async fn listen(acceptor: Acceptor, own: Arc<Own>, welcome: Arc<Welcome>) {
    loop {
        let (tcp, _) = acceptor.accept().await;
        welcome.take(Link::Plain(tcp), own.party(), false);
    }
}
