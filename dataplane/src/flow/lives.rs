//! The flows of this data plane, and what ends them before their time: a lost
//! right within a second, a session that stays away after 30 s, the drain.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use culvert_engine::{Handle, Live};
use culvert_observe::ConnId;
use culvert_proto::close::CloseReason;
use culvert_proto::id::{ClusterId, InstanceId, SessionKey};

use super::Origin;
use crate::observe::pair::Place;
use crate::plane::Plane;
use crate::table::{Cluster, Table};

/// Looks at how fast bytes move are at least this far apart.
const PACE_MIN: Duration = Duration::from_millis(500);
/// A pair goes on this long after its session died, and longer when the
/// instance is back by then.
const ORPHANED_MAX: Duration = Duration::from_secs(30);

/// One flow.
pub struct Flow {
    /// Its cluster, as the table was when it began.
    pub cluster: Arc<Cluster>,
    /// What it reaches.
    pub service: Arc<str>,
    /// What leads there.
    pub origin: Origin,
    /// Its number in the records of both legs.
    pub conn: ConnId,
    /// Who asked.
    pub peer: SocketAddr,
    /// When.
    pub began: Instant,
    shown: OnceLock<Shown>,
    opened: OnceLock<Duration>,
    id: u64,
    session: Mutex<Option<SessionKey>>,
    cut: OnceLock<CloseReason>,
    told: Notify,
    counted: Mutex<Counted>,
    pace: Mutex<Pace>,
}

/// How fast bytes move, as of the last looks.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Bytes a second, towards the service and towards the client.
    pub rates: [f64; 2],
    /// The last look that found more bytes than the one before.
    pub moved: Instant,
    looked: Instant,
    bytes: [u64; 2],
}

impl Pace {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            rates: [0.0; 2],
            moved: now,
            looked: now,
            bytes: [0; 2],
        }
    }

    fn look(&mut self, now: Instant, bytes: [u64; 2]) {
        let passed = now.duration_since(self.looked);
        if bytes != self.bytes {
            self.moved = now;
        }
        if passed < PACE_MIN {
            return;
        }
        for (direction, rate) in self.rates.iter_mut().enumerate() {
            let more = bytes[direction].saturating_sub(self.bytes[direction]);
            *rate = more as f64 / passed.as_secs_f64();
        }
        (self.looked, self.bytes) = (now, bytes);
    }
}

/// What is told of a flow whose service is connected.
pub struct Shown {
    /// Its counters.
    pub live: Arc<Live>,
    /// Bytes of the client that went along with the open.
    pub sent: u64,
    /// How its bytes move.
    pub datapath: &'static str,
    /// Who dialled the data channel.
    pub channel: Option<SocketAddr>,
    /// The engine's pair, and where its residence is measured.
    pub pair: Option<(Handle, Place)>,
}

/// Bytes that the metrics know of.
#[derive(Default)]
struct Counted {
    to_service: u64,
    to_client: u64,
    stalled_ns: [u64; 2],
}

impl Flow {
    /// The session that carries it.
    pub fn session(&self) -> Option<SessionKey> {
        self.session.lock().clone()
    }

    /// It is opened through this session.
    pub fn bind(&self, session: &SessionKey) {
        *self.session.lock() = Some(session.clone());
    }

    /// Its service is connected.
    pub fn relays(&self, shown: Shown) {
        let _ = self.opened.set(self.began.elapsed());
        let metrics = &self.cluster.metrics;
        let to_service = match shown.pair {
            Some(_) => &metrics.spliced_to_service,
            None => &metrics.bytes_to_service,
        };
        to_service.inc_by(shown.sent);
        if let Some(legs) = &metrics.legs {
            legs.delivered(shown.sent, 0);
        }
        let _ = self.shown.set(shown);
    }

    /// Bytes of the client that went along with the open.
    pub fn sent(&self) -> u64 {
        self.shown.get().map_or(0, |shown| shown.sent)
    }

    /// How long it took to connect the service.
    pub fn opened(&self) -> Option<Duration> {
        self.opened.get().copied()
    }

    /// What is told of it, once its service is connected.
    pub fn shown(&self) -> Option<&Shown> {
        self.shown.get()
    }

    /// Resolves when it has to end, and why.
    pub async fn cut(&self) -> CloseReason {
        loop {
            let told = self.told.notified();
            if let Some(reason) = self.cut.get() {
                return *reason;
            }
            told.await;
        }
    }

    fn end(&self, reason: CloseReason) {
        let _ = self.cut.set(reason);
        self.told.notify_waiters();
    }

    /// Why `table` does not permit it any more.
    pub fn lost_right(&self, table: &Table) -> Option<CloseReason> {
        let id = &self.cluster.state.id;
        let Some(cluster) = table.get(id.as_str()) else {
            return Some(CloseReason::Revoked);
        };
        let Some(floor) = table.floor(id.as_str()) else {
            return Some(CloseReason::Disabled);
        };
        if self.session().is_some_and(|session| session.epoch < floor) {
            return Some(CloseReason::Revoked);
        }
        let leads = |way: &crate::routes::Way| way.cluster == *id && way.service == self.service;
        let stays = match &self.origin {
            Origin::Tcp(at) => table.routes.tcp(*at).is_some_and(leads),
            Origin::Sealed { at, name } => table.routes.sealed(*at, name).is_some_and(leads),
            Origin::Forward { digest, .. } => {
                let mut tokens = cluster.state.personal_tokens.iter();
                let reaches =
                    tokens.any(|token| token.digest == *digest && token.reaches(&self.service));
                return (!reaches).then_some(CloseReason::TokenRevoked);
            }
        };
        (!stays).then_some(CloseReason::RouteRemoved)
    }

    /// How fast its bytes move.
    pub fn pace(&self) -> Pace {
        let mut pace = self.pace.lock();
        if let Some(shown) = self.shown.get() {
            pace.look(Instant::now(), shown.bytes());
        }
        *pace
    }

    /// Tells the metrics what was relayed since they were last told.
    pub fn count(&self) {
        let Some(shown) = self.shown.get() else {
            return;
        };
        self.pace.lock().look(Instant::now(), shown.bytes());
        let Shown { live, pair, .. } = shown;
        // What is copied is told as it goes.
        if pair.is_none() {
            return;
        }
        let mut counted = self.counted.lock();
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (to_service, to_client) = (now(&live.to_service), now(&live.to_client));
        let more = |new: u64, old: &mut u64| new.saturating_sub(std::mem::replace(old, new));
        let up = more(to_service, &mut counted.to_service);
        let down = more(to_client, &mut counted.to_client);
        let metrics = &self.cluster.metrics;
        metrics.spliced_to_service.inc_by(up);
        metrics.spliced_to_client.inc_by(down);
        if let Some(legs) = &metrics.legs {
            legs.delivered(up, down);
        }
        for (direction, counter) in metrics.stalled.iter().enumerate() {
            let stalled_ns = now(&live.stalled_ns[direction]);
            let waited_ns = more(stalled_ns, &mut counted.stalled_ns[direction]);
            counter.inc_by(waited_ns as f64 / 1e9);
        }
    }
}

impl Shown {
    /// Bytes delivered to the service and to the client.
    pub fn bytes(&self) -> [u64; 2] {
        let Live {
            to_service,
            to_client,
            ..
        } = &*self.live;
        let [to_service, to_client] =
            [to_service, to_client].map(|count| count.load(Ordering::Relaxed));
        [self.sent + to_service, to_client]
    }
}

/// Who asks for a flow.
pub struct Asked {
    /// What leads there.
    pub origin: Origin,
    /// The flow's number.
    pub conn: ConnId,
    /// Where from.
    pub peer: SocketAddr,
    /// Since when.
    pub began: Instant,
}

/// All flows.
#[derive(Default)]
pub struct Flows {
    by_cluster: Mutex<HashMap<ClusterId, HashMap<u64, Arc<Flow>>>>,
    next: AtomicU64,
    /// When instances with flows lost their session.
    deaths: Mutex<HashMap<(ClusterId, InstanceId), Instant>>,
}

/// A flow among all; dropping it takes it out.
pub struct Registered {
    plane: Arc<Plane>,
    flow: Arc<Flow>,
}

impl Registered {
    /// The flow.
    pub fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }
}

impl Flows {
    /// A new flow.
    pub fn register(
        &self,
        plane: &Arc<Plane>,
        cluster: Arc<Cluster>,
        service: Arc<str>,
        asked: Asked,
    ) -> Registered {
        let Asked {
            origin,
            conn,
            peer,
            began,
        } = asked;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let live = plane.metrics.flows.live.with_label_values(&[origin.mode()]);
        live.inc();
        let flow = Arc::new(Flow {
            cluster,
            service,
            origin,
            conn,
            peer,
            began,
            shown: OnceLock::new(),
            opened: OnceLock::new(),
            id,
            session: Mutex::default(),
            cut: OnceLock::new(),
            told: Notify::new(),
            counted: Mutex::default(),
            pace: Mutex::new(Pace::new()),
        });
        let cluster = flow.cluster.state.id.clone();
        let mut flows = self.by_cluster.lock();
        flows.entry(cluster).or_default().insert(id, flow.clone());
        drop(flows);
        // A table that came in between found no flow to cut.
        if let Some(reason) = flow.lost_right(&plane.table.load()) {
            flow.end(reason);
        }
        Registered {
            plane: plane.clone(),
            flow,
        }
    }

    /// Ends the flows that `table` does not permit; returns how many.
    pub fn cut_unlawful(&self, table: &Table) -> usize {
        self.end(|flow| flow.lost_right(table))
    }

    /// Ends all flows.
    pub fn cut_all(&self, reason: CloseReason) {
        self.end(|_| Some(reason));
    }

    fn end(&self, judge: impl Fn(&Flow) -> Option<CloseReason>) -> usize {
        let mut ended = 0;
        for flow in self.by_cluster.lock().values().flat_map(HashMap::values) {
            if let Some(reason) = judge(flow) {
                flow.end(reason);
                ended += 1;
            }
        }
        ended
    }

    /// Every flow.
    pub fn list(&self) -> Vec<Arc<Flow>> {
        let flows = self.by_cluster.lock();
        flows.values().flat_map(HashMap::values).cloned().collect()
    }

    /// Tells the metrics what all pairs relayed so far.
    pub fn count(&self) {
        for flow in self.by_cluster.lock().values().flat_map(HashMap::values) {
            flow.count();
        }
    }

    fn of_instance(&self, cluster: &ClusterId, instance: &InstanceId) -> Vec<Arc<Flow>> {
        let flows = self.by_cluster.lock();
        let own = flows.get(cluster).into_iter().flat_map(HashMap::values);
        let theirs = own.filter(|flow| {
            let session = flow.session.lock();
            session
                .as_ref()
                .is_some_and(|session| session.instance == *instance)
        });
        theirs.cloned().collect()
    }
}

/// The session `key` ended: its flows go on for 30 s, and longer when its
/// instance is back by then.
pub fn orphaned(plane: &Arc<Plane>, key: &SessionKey) {
    let flows = &plane.flows;
    let instance = (key.cluster.clone(), key.instance);
    if flows.of_instance(&instance.0, &instance.1).is_empty() {
        return;
    }
    let died = Instant::now();
    flows.deaths.lock().insert(instance.clone(), died);
    let plane = plane.clone();
    tokio::spawn(async move {
        tokio::time::sleep(ORPHANED_MAX).await;
        let mut deaths = plane.flows.deaths.lock();
        // It was back and died again: a later wait decides.
        if deaths.get(&instance) != Some(&died) {
            return;
        }
        deaths.remove(&instance);
        drop(deaths);
        // Told to move, agents leave their pairs to the grace.
        if plane.is_draining() {
            return;
        }
        let (cluster, id) = &instance;
        let is_back = |session: &Arc<crate::sessions::Session>| session.key.instance == *id;
        if !plane.sessions.of(cluster).iter().any(is_back) {
            for flow in plane.flows.of_instance(cluster, id) {
                flow.end(CloseReason::CarrierLost);
            }
        }
    });
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut flows = self.plane.flows.by_cluster.lock();
        let cluster = &self.flow.cluster.state.id;
        if let Some(own) = flows.get_mut(cluster) {
            own.remove(&self.flow.id);
            if own.is_empty() {
                flows.remove(cluster);
            }
        }
        drop(flows);
        let mode = self.flow.origin.mode();
        let live = self.plane.metrics.flows.live.with_label_values(&[mode]);
        live.dec();
    }
}
