//! `culvert-agent bridge`: waits for its broker everywhere it may come from, and connects what it
//! sends to the one service.

use std::sync::Arc;
use std::time::Duration;

use culvert_mux::Budget;
use culvert_net::introduction::Link;
use culvert_net::listen::Acceptor;
use culvert_net::tls::pair::Side;
use culvert_proto::pair::{ALPN_PAIR, ALPN_PAIR_RAW, Role};
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::aloud::Aloud;
use super::follow::Follow;
use super::party::{Own, Party};
use super::post::{Met, Post};
use super::reach::Reach;
use super::welcome::Welcome;
use super::{PairError, SPARE, bind, relay, service_name};
use crate::config::{BridgeConfig, Way};
use crate::flow::Flows;
use crate::health::Health;
use crate::metrics::AgentMetrics;
use crate::services::{NamedService, Services};
use crate::target::Target;
use crate::upstream::resolve::{Resolve, SystemResolver};

/// What a bridge speaks; the broker chooses.
pub(super) const ALPNS: &[&[u8]] = &[ALPN_PAIR, ALPN_PAIR_RAW];
/// Connections that met the broker and were not taken yet.
const MET_MAX: usize = 16;

/// How a bridge waits.
pub(super) struct Waiting {
    pub(super) way: Way,
    reach: Reach,
    metrics: Arc<AgentMetrics>,
    welcome: Arc<Welcome>,
    aloud: Arc<Aloud>,
}

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
    let BridgeConfig {
        pair, to, store, ..
    } = config;
    let own = match pair.identity {
        Some(files) => Own::load(Side::Bridge, ALPNS, files, pair.info_hash)?,
        None => Own::nobody(Side::Bridge, ALPNS),
    };
    let own = Arc::new(own);
    let acceptor = match &pair.way {
        Way::Listen(addr) => Some(bind(*addr, "listen-pair")?),
        _ => None,
    };
    let (ready, listens, known) = (metrics.clone(), acceptor.is_some(), own.clone());
    let health = Health::bind(pair.health_addr, metrics.registry.clone(), move || {
        let waits = listens && known.party().is_some();
        waits || ready.pair().waiting() > 0 || ready.pair().standing() > 0
    })
    .map_err(PairError::Health)?;
    let reach = match pair.way.outer() {
        Some(outer) => relay(outer, Role::Bridge)?,
        None => Reach::Called,
    };
    tracing::info!(to = to.address(), "bridge starts");
    let waiting = Arc::new(Waiting {
        way: pair.way,
        reach,
        metrics,
        welcome: welcome.clone(),
        aloud: Arc::default(),
    });
    let mut tasks = Waiting::start(&waiting, &own, acceptor);
    if let Some(store) = store {
        let door = (!matches!(waiting.way, Way::Relay { .. })).then(|| own.clone());
        let follow = Follow::new(store, waiting, door);
        tasks.push(tokio::spawn(follow.run()));
    }
    tasks.push(tokio::spawn(super::tick(health.ticker())));
    let serving = tokio::spawn(health.serve());
    shutdown.reached(Phase::Draining).await;
    // With them go the connections that wait; pairs that stand go on.
    for task in &tasks {
        task.abort();
    }
    drain(&welcome, pair.drain_grace, shutdown).await;
    serving.abort();
    Ok(())
}

async fn drain(welcome: &Welcome, grace: Duration, shutdown: &Shutdown) {
    welcome.retire();
    tracing::info!(grace_s = grace.as_secs(), "stopping");
    tokio::select! {
        _ = timeout(grace, welcome.idle()) => {}
        () = shutdown.reached(Phase::Stopped) => {}
    }
    welcome.cut();
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

impl Waiting {
    /// Waits as `own`, wherever this bridge's way leads.
    fn start(
        waiting: &Arc<Waiting>,
        own: &Arc<Own>,
        acceptor: Option<Acceptor>,
    ) -> Vec<JoinHandle<()>> {
        let places = match (&waiting.way, acceptor) {
            (_, Some(acceptor)) => {
                let (own, welcome) = (own.clone(), waiting.welcome.clone());
                return vec![tokio::spawn(listen(acceptor, own, welcome))];
            }
            (Way::Dial(places), None) => places.clone(),
            (Way::Relay { relays, .. }, None) => relays.clone(),
            (Way::Listen(_), None) => return Vec::new(),
        };
        let (waiting, own) = (waiting.clone(), own.clone());
        vec![tokio::spawn(async move {
            let first = own.ready().await;
            let party = || own.party().unwrap_or_else(|| first.clone());
            waiting.keep(places, SPARE, party).await;
        })]
    }

    /// Waits at `places` as `party`, in a task of its own.
    pub(super) fn wait(
        self: &Arc<Self>,
        places: Vec<Arc<Target>>,
        spare: usize,
        party: Arc<Party>,
    ) -> JoinHandle<()> {
        let waiting = self.clone();
        tokio::spawn(async move { waiting.keep(places, spare, || party.clone()).await })
    }

    async fn keep(
        &self,
        places: Vec<Arc<Target>>,
        spare: usize,
        party: impl Fn() -> Arc<Party> + Send + Sync,
    ) {
        let post = Post {
            places,
            reach: self.reach.clone(),
            spare,
            once: false,
            stagger: Duration::ZERO,
            resolver: Arc::new(SystemResolver),
            metrics: self.metrics.clone(),
            aloud: self.aloud.clone(),
        };
        let (out, mut met) = mpsc::channel::<Met>(MET_MAX);
        let taking = async {
            while let Some(Met { link, party }) = met.recv().await {
                self.welcome.take(link, party, true);
            }
        };
        tokio::join!(post.keep(party, &out), taking);
    }
}

async fn listen(acceptor: Acceptor, own: Arc<Own>, welcome: Arc<Welcome>) {
    loop {
        let (tcp, from) = acceptor.accept().await;
        match own.party() {
            Some(party) => welcome.take(Link::Plain(tcp), party, false),
            None => tracing::debug!(%from, "a broker came before any pair was registered"),
        }
    }
}
