//! The agents that are connected: one registry behind one short lock, off the
//! path of bytes.

mod slot;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;

use culvert_enrol::AgentCertificate;
use culvert_net::carrier::{Carrier, Stream};
use culvert_proto::close::CloseReason;
use culvert_proto::control::AgentFacts;
use culvert_proto::hello::{Caps, CarrierKind};
use culvert_proto::id::{ClusterId, Epoch, SessionKey};
use culvert_proto::open::StreamHeader;
use culvert_proto::registry::{Admission, Candidate, Refused, Registry, Standing};

use crate::certified::Renewing;
use crate::channel::Channels;
use crate::ingress::Refusal;
use crate::metrics::{ClusterMetrics, Metrics};

pub use slot::{PairSlot, StreamSlot};

/// Sessions tried for one request, when those picked end under our hands.
const ATTEMPTS_MAX: usize = 4;

/// One agent.
pub struct Session {
    /// Which session this is.
    pub key: SessionKey,
    /// What the agent said when it connected.
    pub facts: Facts,
    /// Its carrier.
    pub carrier: Carrier,
    /// What both ends can do.
    pub caps: Caps,
    /// Its data channels, where it can open some.
    pub channels: Option<Arc<Channels>>,
    /// What it was told it may be asked for.
    pub granted: Mutex<Vec<Arc<str>>>,
    /// What it said in its hello on the control stream.
    pub agent: OnceLock<AgentFacts>,
    /// Whether a new certificate is being made for it.
    pub renewing: Renewing,
    live: AtomicU32,
    pairs: AtomicU32,
    idle: Notify,
    streams_max: AtomicU32,
    /// What was told of waits for the mux.
    stall_told: Mutex<Duration>,
}

/// What is known of an agent, for lists and reports.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Its version.
    pub version: String,
    /// Its carrier.
    pub kind: CarrierKind,
    /// Where it dialled from.
    pub peer: std::net::SocketAddr,
    /// Whether it showed a client certificate.
    pub showed_certificate: bool,
    /// The certificate that says who it is, in place of a token.
    pub certificate: Option<AgentCertificate>,
    /// Public id of the token it came with.
    pub token_id: Arc<str>,
    /// When it was accepted.
    pub began: Instant,
}

/// All sessions of this data plane.
pub struct Sessions {
    registry: Mutex<Registry<Arc<Session>>>,
    by_epoch: Mutex<HashMap<Epoch, Arc<Session>>>,
    clock: Instant,
    metrics: Arc<Metrics>,
}

impl Session {
    /// A session whose carrier runs; `streams_max` is the cluster's limit.
    pub fn new(
        key: SessionKey,
        facts: Facts,
        carrier: Carrier,
        caps: Caps,
        streams_max: u32,
        metrics: &Arc<Metrics>,
    ) -> Arc<Self> {
        let channels = caps
            .has(Caps::CHANNEL)
            .then(|| Channels::new(key.epoch, metrics.clone()));
        Arc::new(Self {
            key,
            facts,
            carrier,
            caps,
            channels,
            granted: Mutex::default(),
            agent: OnceLock::new(),
            renewing: Renewing::default(),
            live: AtomicU32::new(0),
            pairs: AtomicU32::new(0),
            idle: Notify::new(),
            streams_max: AtomicU32::new(streams_max),
            stall_told: Mutex::default(),
        })
    }

    /// Resolves when no stream is open.
    pub async fn idle(&self) {
        loop {
            let mut told = std::pin::pin!(self.idle.notified());
            told.as_mut().enable();
            if self.live() == 0 {
                return;
            }
            told.await;
        }
    }

    /// The agent advertised how many streams it takes.
    pub fn advertise(&self, streams_max: u32) {
        self.streams_max
            .fetch_min(streams_max.max(1), Ordering::Relaxed);
    }

    /// Streams open now.
    pub fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// Streams allowed at once.
    pub fn streams_max(&self) -> u32 {
        self.streams_max.load(Ordering::Relaxed)
    }

    /// A pair's place in its load.
    pub fn pair(self: &Arc<Self>) -> PairSlot {
        PairSlot::new(self.clone())
    }

    /// Per mille of what it may carry.
    fn load(&self) -> u64 {
        let pairs = self.pairs.load(Ordering::Relaxed);
        (u64::from(self.live()) + u64::from(pairs)) * 1000 / u64::from(self.streams_max().max(1))
    }
}

impl Sessions {
    /// No sessions. Epochs start above the wall clock, so that they rise across
    /// restarts.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let seed = SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap_or_default()
            .as_millis();
        Self {
            registry: Mutex::new(Registry::new(u64::try_from(seed).unwrap_or(0))),
            by_epoch: Mutex::default(),
            clock: Instant::now(),
            metrics,
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Reserves an epoch for an agent that may serve; `None` when there is no
    /// candidate. `candidate` reads the cluster's floor under the lock, so that
    /// a revocation cannot slip between. The inner error says why it may not.
    pub fn admit(
        &self,
        candidate: impl FnOnce() -> Option<Candidate>,
    ) -> Option<Result<Admission, Refused>> {
        let mut registry = self.registry.lock();
        let admitted = registry.admit(candidate()?, self.now_ms());
        drop(registry);
        Some(admitted.inspect_err(|_| self.count_replacement("refused")))
    }

    /// Makes `session` current from now on; returns those whose place it took.
    ///
    /// # Errors
    /// What changed since it was admitted.
    pub fn attach(
        &self,
        admission: Admission,
        session: &Arc<Session>,
    ) -> Result<Vec<Arc<Session>>, Refused> {
        let mut registry = self.registry.lock();
        let attached = registry.attach(admission, self.now_ms(), session.clone());
        drop(registry);
        let attached = attached.inspect_err(|_| self.count_replacement("refused"))?;
        let mut by_epoch = self.by_epoch.lock();
        by_epoch.insert(session.key.epoch, session.clone());
        for (key, _) in &attached.evicted {
            by_epoch.remove(&key.epoch);
            self.count_replacement("replaced");
        }
        drop(by_epoch);
        self.gauge(session).inc();
        self.metrics.agents.inc();
        Ok(attached.evicted.into_iter().map(|(_, old)| old).collect())
    }

    fn count_replacement(&self, outcome: &str) {
        self.metrics
            .replacements
            .with_label_values(&[outcome])
            .inc();
    }

    /// Removes `session`, unless a newer one took its place already.
    pub fn detach(&self, session: &Arc<Session>) {
        self.by_epoch.lock().remove(&session.key.epoch);
        if self.registry.lock().detach(&session.key).is_none() {
            self.count_replacement("stale_teardown");
        }
        self.gauge(session).dec();
        self.metrics.agents.dec();
        self.count_stall(session);
        let life = session.facts.began.elapsed().as_secs_f64();
        self.metrics
            .session_seconds
            .with_label_values(&[] as &[&str])
            .observe(life);
    }

    fn gauge(&self, session: &Session) -> culvert_telemetry::metrics::IntGauge {
        let carrier = match session.facts.kind {
            CarrierKind::Native => "raw",
            CarrierKind::WebSocket => "websocket",
            CarrierKind::Radar => "compat",
        };
        self.metrics.sessions(session.key.cluster.as_str(), carrier)
    }

    /// Sessions of `cluster` below `floor` are dead: they and their streams are
    /// cut now. Returns how many.
    pub fn revoke(&self, cluster: &ClusterId, floor: Epoch) -> usize {
        let dead = self.registry.lock().revoke(cluster, floor);
        Self::cut(&dead, CloseReason::Revoked)
    }

    /// No session of `cluster` may live: all are cut now. Returns how many.
    pub fn remove(&self, cluster: &ClusterId, reason: CloseReason) -> usize {
        let dead = self.registry.lock().remove(cluster);
        Self::cut(&dead, reason)
    }

    fn cut(dead: &[(SessionKey, Arc<Session>)], reason: CloseReason) -> usize {
        for (_, session) in dead {
            session.carrier.close(reason);
        }
        dead.len()
    }

    /// Tells the metrics how long writers waited for carriers since they were last told.
    pub fn count(&self) {
        for session in self.list(usize::MAX) {
            self.count_stall(&session);
        }
    }

    fn count_stall(&self, session: &Session) {
        let now = session.carrier.write_stall();
        let mut told = session.stall_told.lock();
        let more = now.saturating_sub(std::mem::replace(&mut *told, now));
        if !more.is_zero() {
            let counter = self.metrics.mux_stall(session.key.cluster.as_str());
            counter.inc_by(more.as_secs_f64());
        }
    }

    /// The current session of an epoch.
    pub fn by_epoch(&self, epoch: Epoch) -> Option<Arc<Session>> {
        self.by_epoch.lock().get(&epoch).cloned()
    }

    /// No new stream goes to `session` where another one serves.
    pub fn set_standing(&self, session: &Session, standing: Standing) {
        self.registry.lock().set_standing(&session.key, standing);
    }

    /// All sessions, at most `max`.
    pub fn list(&self, max: usize) -> Vec<Arc<Session>> {
        let registry = self.registry.lock();
        registry
            .iter()
            .take(max)
            .map(|(_, _, session)| session.clone())
            .collect()
    }

    /// The sessions of one cluster.
    pub fn of(&self, cluster: &ClusterId) -> Vec<Arc<Session>> {
        let registry = self.registry.lock();
        let own = registry.iter().filter(|(key, ..)| key.cluster == *cluster);
        own.map(|(_, _, session)| session.clone()).collect()
    }

    /// All sessions are asked to move: they serve only where nothing else does.
    pub fn leave_all(&self) {
        self.registry.lock().leave_all();
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.registry.lock().len()
    }

    /// Whether no agent is connected.
    pub fn is_empty(&self) -> bool {
        self.registry.lock().is_empty()
    }

    /// The least loaded agent of `cluster`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn pick(&self, cluster: &ClusterId) -> Result<Arc<Session>, Refusal> {
        let registry = self.registry.lock();
        if let Some(picked) = registry.pick(cluster, |session| session.load()) {
            return Ok(picked.clone());
        }
        let absent = registry.presence(cluster).close_reason();
        let reason = absent.unwrap_or(CloseReason::AgentAbsent);
        Err(Refusal::new(reason, format!("Cluster {cluster}.")))
    }

    /// Opens a stream to the least loaded agent of `cluster`.
    ///
    /// # Errors
    /// Why there is none, at once.
    pub fn open(
        &self,
        cluster: &ClusterId,
        metrics: &Arc<ClusterMetrics>,
        header: &StreamHeader,
    ) -> Result<(Stream, StreamSlot), Refusal> {
        for _ in 0..ATTEMPTS_MAX {
            let session = self.pick(cluster)?;
            match self.open_on(&session, metrics, header) {
                Ok(opened) => return Ok(opened),
                Err(Some(refusal)) => return Err(refusal),
                Err(None) => self.set_standing(&session, Standing::Closed),
            }
        }
        let detail = format!("Cluster {cluster}.");
        Err(Refusal::new(CloseReason::AgentDraining, detail))
    }

    /// Opens a stream to one agent.
    ///
    /// # Errors
    /// Why there is none; `None` when the agent is about to go.
    pub fn open_on(
        &self,
        session: &Arc<Session>,
        metrics: &Arc<ClusterMetrics>,
        header: &StreamHeader,
    ) -> Result<(Stream, StreamSlot), Option<Refusal>> {
        let slot = self.reserve(session, metrics);
        let slot = slot.ok_or_else(|| self.refused(CloseReason::TooManyStreams, "limit"))?;
        let header = session.facts.kind.is_culvert().then_some(header);
        match session.carrier.open(header) {
            Ok(stream) => Ok((stream, slot)),
            Err(why) => Err(match why.reason {
                CloseReason::TooManyStreams => {
                    Some(self.refused(CloseReason::TooManyStreams, "limit"))
                }
                CloseReason::Overload => Some(self.refused(CloseReason::Overload, "budget")),
                _ => None,
            }),
        }
    }

    fn refused(&self, reason: CloseReason, label: &str) -> Refusal {
        self.metrics
            .streams_refused
            .with_label_values(&[label])
            .inc();
        Refusal::new(reason, "")
    }

    fn reserve(&self, session: &Arc<Session>, cluster: &Arc<ClusterMetrics>) -> Option<StreamSlot> {
        let max = session.streams_max();
        let taken = session
            .live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |live| {
                (live < max).then_some(live + 1)
            });
        taken.ok()?;
        cluster.streams.inc();
        cluster.streams_opened.inc();
        Some(StreamSlot {
            session: session.clone(),
            cluster: cluster.clone(),
            metrics: self.metrics.clone(),
            told: false,
        })
    }
}
