//! `culvert-agent broker`: a local port whose every connection reaches the bridge's service.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_mux::Budget;
use culvert_net::carrier::{Carrier, Stream};
use culvert_net::crypto::random_bytes;
use culvert_net::dial::{Backoff, Setback};
use culvert_net::listen::Acceptor;
use culvert_net::relay::{Early, arm};
use culvert_net::tls::pair::{PairTlsError, Side};
use culvert_proto::close::CloseReason;
use culvert_proto::pair::{ALPN_PAIR, ALPN_PAIR_RAW, Role};
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use super::aloud::Aloud;
use super::keep::{Keeper, STANDS_MAX};
use super::open::{NotOpened, open};
use super::party::{Own, Party};
use super::pool::Pool;
use super::post::{Met, Post, STAGGER};
use super::reach::Reach;
use super::state::Holder;
use super::{Joined, PairError, RETRY_MAX, bind, relay};
use crate::config::{BrokerConfig, Way};
use crate::flow::Mover;
use crate::health::Health;
use crate::metrics::{AgentMetrics, Datapath, PairForm, PairStep};
use crate::upstream::resolve::SystemResolver;

const MUX: &[&[u8]] = &[ALPN_PAIR];
const RAW: &[&[u8]] = &[ALPN_PAIR_RAW];

/// A bridge that was met answers within this time, or another one is looked for too.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Bridges that were met and have not answered, for one pair.
const HEDGED_MAX: usize = 3;

/// From when on a client that waits for its pair is asked whether it is still there: making one takes
/// less.
const CLIENT_STAYS: Duration = Duration::from_secs(3);
/// And how often.
const CLIENT_LOOK: Duration = Duration::from_secs(1);

/// Longest wait for the last words on the pair.
const LEAVE_MAX: Duration = Duration::from_secs(1);

/// How a broker gets at a pair.
pub(super) struct Ways {
    way: WayIn,
    own: Arc<Own>,
    metrics: Arc<AgentMetrics>,
}

enum WayIn {
    /// It dials, a relay or the bridge.
    Out(Post),
    /// Bridges dial it.
    In(Arc<Pool>),
}

struct Broker {
    ways: Arc<Ways>,
    mover: Arc<Mover>,
    metrics: Arc<AgentMetrics>,
    /// The long-lived pair; absent where each connection gets its own.
    stands: Option<watch::Receiver<Option<Carrier>>>,
    used_up: Arc<Notify>,
    aloud: Aloud,
}

impl Ways {
    /// A pair, ended in TLS. In modes relay and direct one try, [hedged](hedge); in mode reverse it
    /// goes on until there is one.
    ///
    /// # Errors
    /// What was seen in the handshake.
    pub(super) async fn join(&self) -> Result<Joined, PairTlsError> {
        let first = self.own.ready().await;
        let own = self.own.party().unwrap_or(first);
        self.join_as(&own).await
    }

    /// As [`Ways::join`], again while that may help: a bridge that answers no more or is restarted
    /// costs the client time, not its connection. Nothing of the client was sent yet.
    ///
    /// # Errors
    /// What was seen, by then at the latest.
    async fn join_by(&self, deadline: Instant) -> Result<Joined, String> {
        let mut backoff = Backoff::new(RETRY_MAX);
        let mut seen = format!(
            "no bridge came to meet within {STANDS_MAX:?}; look at the bridge and at the relays"
        );
        loop {
            match timeout_at(deadline, self.join()).await {
                Ok(Ok(joined)) => return Ok(joined),
                Ok(Err(why @ (PairTlsError::Broken(_) | PairTlsError::Silent(_)))) => {
                    seen = why.to_string();
                }
                Ok(Err(why)) => return Err(why.to_string()),
                Err(_) => return Err(seen),
            }
            let wait = backoff.next(Setback::Ordinary, u64::from_ne_bytes(random_bytes()));
            if timeout_at(deadline, sleep(wait)).await.is_err() {
                return Err(seen);
            }
        }
    }

    /// As [`Ways::join`], as somebody else than this broker is by now.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn join_as(&self, own: &Arc<Party>) -> Result<Joined, PairTlsError> {
        match &self.way {
            WayIn::Out(post) => {
                let joined = Box::pin(hedge(|| post.first(|| own.clone()))).await;
                joined.inspect_err(|_| self.metrics.pair().failed(PairStep::Handshake))
            }
            WayIn::In(pool) => {
                let mut told = false;
                let joined = pool.join(&own.tls, |why| {
                    // Anybody may dial this port; once for each pair that is missed is enough.
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%why, "what dialled this broker is not its bridge");
                    }
                });
                Ok(joined.await)
            }
        }
    }
}

/// The first pair that comes of what `meet` finds. A bridge whose host is gone waits at its relay
/// until that has noticed, and meeting it must not cost the time that a handshake may take: after
/// [`ANSWER_MAX`] another one is looked for beside it.
///
/// # Errors
/// What was seen, when nothing else is on its way.
async fn hedge<F>(meet: impl Fn() -> F) -> Result<Joined, PairTlsError>
where
    F: Future<Output = Met>,
{
    let met = Notify::new();
    let one = || async {
        let Met { link, party } = meet().await;
        met.notify_one();
        party.tls.handshake(link).await
    };
    let mut tries = FuturesUnordered::from_iter([one()]);
    let mut due = None;
    loop {
        let another = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(joined) = tries.next() => match joined {
                Err(why) if !tries.is_empty() => {
                    tracing::debug!(%why, "a bridge that was met does not answer");
                }
                joined => return joined,
            },
            () = met.notified() => {
                due = (tries.len() < HEDGED_MAX).then(|| Instant::now() + ANSWER_MAX);
            }
            () = another => {
                due = None;
                tries.push(one());
            }
        }
    }
}

/// Resolves when the client of `local` ended its connection, or its side of it, while it waits for a
/// pair. So late that is no half of a conversation any more, and its pair would be missed by others.
async fn left(local: &TcpStream) {
    sleep(CLIENT_STAYS).await;
    loop {
        let mut fds = [PollFd::new(local, PollFlags::RDHUP)];
        let polled = poll(&mut fds, Some(&Timespec::default()));
        if polled.is_err() || !fds[0].revents().is_empty() {
            return;
        }
        sleep(CLIENT_LOOK).await;
    }
}

/// Runs until `shutdown` drains and the connections have ended, or their time.
///
/// # Errors
/// [`PairError`]; nothing was accepted or dialled then.
pub async fn run(mut config: BrokerConfig, shutdown: &Shutdown) -> Result<(), PairError> {
    for warning in &config.pair.warnings {
        tracing::warn!("{warning}");
    }
    let metrics = Arc::new(AgentMetrics::new(""));
    let alpns = if config.flow_per_pair { RAW } else { MUX };
    let (own, holder) = own(&mut config, alpns, &metrics).await?;
    let clients = bind(config.listen, "listen")?;
    let local = clients.local_addr();
    let addr = local.map_err(|why| PairError::Listen(why, "listen"))?;
    let (ways, filling) = ways(config.pair.way, own.clone(), &metrics)?;
    let (stands, seen) = watch::channel(None);
    let (ready, known, each) = (seen.clone(), own.clone(), config.flow_per_pair);
    let health = Health::bind(
        config.pair.health_addr,
        metrics.registry.clone(),
        move || (each && known.party().is_some()) || ready.borrow().is_some(),
    )
    .map_err(PairError::Health)?;
    let ticking = tokio::spawn(super::tick(health.ticker()));
    let serving = tokio::spawn(health.serve());
    tracing::info!(listen = %addr, flow_per_pair = each, "broker starts");
    let used_up = Arc::new(Notify::new());
    let keeper = Keeper {
        ways: ways.clone(),
        budget: Arc::new(Budget::new(config.pair.memory_budget_bytes)),
        streams_max: config.pair.streams_max,
        metrics: metrics.clone(),
        stands,
        used_up: used_up.clone(),
    };
    let holding = holder.map(|holder| tokio::spawn(holder.run(ways.clone(), own)));
    let keeping = (!each).then(|| tokio::spawn(keeper.run()));
    let broker = Arc::new(Broker {
        ways,
        mover: Arc::new(Mover::new(None, metrics.clone())),
        metrics,
        stands: (!each).then_some(seen),
        used_up,
        aloud: Aloud::default(),
    });
    let opening = accept(&broker, clients, config.pair.streams_max, shutdown).await;
    drain(&broker, opening, config.pair.drain_grace, shutdown).await;
    let tasks = [Some(serving), Some(ticking), holding, keeping, filling];
    for task in tasks.into_iter().flatten() {
        task.abort();
    }
    Ok(())
}

/// Who this broker is, and what makes it that where it is not yet.
async fn own(
    config: &mut BrokerConfig,
    alpns: &'static [&'static [u8]],
    metrics: &Arc<AgentMetrics>,
) -> Result<(Arc<Own>, Option<Holder>), PairError> {
    let info_hash = config.pair.info_hash;
    if let Some(files) = config.pair.identity.clone() {
        let own = Own::load(Side::Broker, alpns, files, info_hash)?;
        return Ok((Arc::new(own), None));
    }
    let own = Arc::new(Own::nobody(Side::Broker, alpns));
    let holder = match config.boot.take() {
        Some(boot) => Some(Holder::load(boot, info_hash, metrics.clone()).await?),
        None => None,
    };
    Ok((own, holder))
}

fn ways(
    way: Way,
    own: Arc<Own>,
    metrics: &Arc<AgentMetrics>,
) -> Result<(Arc<Ways>, Option<JoinHandle<()>>), PairError> {
    let mut filling = None;
    let (places, reach) = match way {
        Way::Listen(addr) => {
            let acceptor = bind(addr, "listen-pair")?;
            let pool = Arc::new(Pool::new(metrics.clone()));
            let filled = pool.clone();
            filling = Some(tokio::spawn(async move { filled.fill(acceptor).await }));
            let way = WayIn::In(pool);
            let metrics = metrics.clone();
            return Ok((Arc::new(Ways { way, own, metrics }), filling));
        }
        Way::Dial(places) => (places, Reach::Calls),
        Way::Relay { relays, outer } => (relays, relay(&outer, Role::Broker)?),
    };
    let post = Post {
        places,
        reach,
        spare: 1,
        once: true,
        stagger: STAGGER,
        resolver: Arc::new(SystemResolver),
        metrics: metrics.clone(),
        aloud: Arc::default(),
    };
    let way = WayIn::Out(post);
    let metrics = metrics.clone();
    Ok((Arc::new(Ways { way, own, metrics }), filling))
}

/// Accepts until the process drains; gives back what runs.
async fn accept(
    broker: &Arc<Broker>,
    clients: Acceptor,
    most: u32,
    shutdown: &Shutdown,
) -> TaskTracker {
    let places = Arc::new(Semaphore::new(most as usize));
    let opening = TaskTracker::new();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (clients.accept().await, place)
        };
        let ((local, from), place) = tokio::select! {
            next = next => next,
            () = shutdown.reached(Phase::Draining) => break,
        };
        let broker = broker.clone();
        opening.spawn(async move {
            Box::pin(broker.serve(local, from)).await;
            drop(place);
        });
    }
    opening.close();
    opening
}

async fn drain(broker: &Broker, opening: TaskTracker, grace: Duration, shutdown: &Shutdown) {
    tracing::info!(
        connections = opening.len(),
        grace_s = grace.as_secs(),
        "stopping"
    );
    tokio::select! {
        _ = timeout(grace, opening.wait()) => {}
        () = shutdown.reached(Phase::Stopped) => {}
    }
    broker.mover.cut();
    broker.leave().await;
}

impl Broker {
    /// Tells the bridge that this broker goes, so that it need not look like a loss.
    async fn leave(&self) {
        let Some(mut stands) = self.stands.clone() else {
            return;
        };
        let carrier = stands.borrow_and_update().clone();
        if let Some(carrier) = carrier {
            carrier.close(CloseReason::Draining);
            // The keeper sees its end when the last words are written.
            let _ = timeout(LEAVE_MAX, stands.wait_for(Option::is_none)).await;
        }
    }

    /// Serves one local connection to its end, or says why not and resets it.
    async fn serve(&self, local: TcpStream, from: SocketAddr) {
        // Whatever happens before there is a service must not look like its end.
        if let Err(why) = arm(local.as_fd()) {
            tracing::debug!(%why, "a local connection left");
            return;
        }
        let deadline = Instant::now() + STANDS_MAX;
        let unserved = match &self.stands {
            None => tokio::select! {
                joined = self.ways.join_by(deadline) => match joined {
                    Ok(joined) => return self.raw(local, joined).await,
                    Err(why) => why,
                },
                () = left(&local) => {
                    tracing::debug!(client = %from, "a client left before there was a pair for it");
                    return;
                }
            },
            Some(stands) => match self.mux(stands.clone(), from, deadline).await {
                Ok((stream, first)) => {
                    let early = Early {
                        to_client: first,
                        ..Early::default()
                    };
                    return self
                        .mover
                        .copy(Datapath::Stream, local, stream, early)
                        .await;
                }
                Err(why) => why,
            },
        };
        self.metrics.pair().unserved.inc();
        let seen = unserved;
        match self.aloud.now("client", &seen) {
            Some(kept_back) => {
                tracing::warn!(client = %from, seen, kept_back, "a connection was not served");
            }
            None => tracing::debug!(client = %from, seen, "a connection was not served"),
        }
    }

    async fn raw(&self, local: TcpStream, joined: Joined) {
        let _stands = self.metrics.pair().stands(PairForm::Raw);
        self.mover
            .copy(Datapath::Copy, local, joined, Early::default())
            .await;
    }

    /// A stream on the pair that stands, or on the next one.
    async fn mux(
        &self,
        mut stands: watch::Receiver<Option<Carrier>>,
        from: SocketAddr,
        mut deadline: Instant,
    ) -> Result<(Stream, Bytes), String> {
        let mut asked_again = false;
        loop {
            let carrier = match timeout_at(deadline, stands.wait_for(Option::is_some)).await {
                Ok(Ok(carrier)) => carrier.clone(),
                _ => None,
            };
            let Some(carrier) = carrier else {
                return Err(format!(
                    "no pair stood within {STANDS_MAX:?}; look at this broker's log, at the bridge and at the relays"
                ));
            };
            match open(&carrier, Some(from)).await {
                Ok(opened) => return Ok(opened),
                // Nothing of the client was sent yet. A dead pair is found late: the time that it
                // took is not the client's.
                Err(NotOpened::Broken(_)) if !asked_again && carrier.ended().is_some() => {
                    asked_again = true;
                    deadline = Instant::now() + STANDS_MAX;
                    let _ = timeout_at(deadline, stands.changed()).await;
                }
                Err(why) if why.is_of_pair() && Instant::now() < deadline => {
                    if carrier.ended().is_none() {
                        self.used_up.notify_one();
                    }
                    // Until the keeper has seen it.
                    let _ = timeout_at(deadline, stands.changed()).await;
                }
                Err(why) => return Err(why.to_string()),
            }
        }
    }
}
