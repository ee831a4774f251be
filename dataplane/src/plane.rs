//! What all threads of one data plane share.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use culvert_engine::Engine;
use culvert_mux::{Budget, Pressure};
use culvert_net::tls::AgentsTls;
use culvert_observe::Observer;
use culvert_proto::channel::{ALPN, Form};
use culvert_proto::close::CloseReason;
use culvert_proto::hello::Caps;
use culvert_proto::id::{ClusterId, Epoch};
use culvert_proto::update::State;
use culvert_telemetry::lifecycle::{Phase, Shutdown};

use crate::audit::Audit;
use crate::beats::Beats;
use crate::certified::{Certified, leave_with_retired_ca, offer_cas};
use crate::config::Config;
use crate::console::Requests;
pub use crate::engine::gauge;
use crate::flow::lives::Flows;
use crate::ingress::Refusal;
use crate::links::Links;
use crate::metrics::Metrics;
use crate::pacing::{Admission, FailurePacing, Limiter, limiter, take};
use crate::rights::Rights;
use crate::routes::follow::Threads;
use crate::session::take_routes;
use crate::sessions::Sessions;
use crate::table::{Changes, Defaults, Source, Table};
use crate::watches::Watches;

/// One data plane.
pub struct Plane {
    /// What it was told.
    pub config: Config,
    /// The table in use.
    pub table: ArcSwap<Table>,
    /// The agents.
    pub sessions: Sessions,
    /// Relayed TCP connections.
    pub flows: Flows,
    /// Relays pairs of plain sockets.
    pub engine: Engine,
    /// Who accepts for routes.
    pub route_threads: Threads,
    /// Connections that one listener may have.
    pub connections_max: usize,
    /// Records of audited requests.
    pub audit: Audit,
    /// The instruments.
    pub metrics: Arc<Metrics>,
    /// Memory of sessions and streams.
    pub budget: Arc<Budget>,
    /// What travels between control and agents.
    pub links: Links,
    /// Paces new agents.
    pub admission: Admission,
    /// Paces failed credentials.
    pub failures: FailurePacing,
    /// Streams without an end that people hold.
    pub watches: Watches,
    /// What people have running.
    pub rights: Rights,
    /// Requests that are passed on to control.
    pub console: Requests,
    /// Agents that show certificates.
    pub certified: Certified,
    rate: ArcSwap<Option<(NonZeroU32, Limiter)>>,
    /// Its phase.
    pub shutdown: Shutdown,
    refusing: watch::Sender<bool>,
    exiting: watch::Sender<bool>,
    beats: Beats,
    requests: AtomicUsize,
    idle: Notify,
    changed: Notify,
    tables: watch::Sender<()>,
    confirmed: Mutex<Instant>,
    listening: AtomicBool,
}

/// A request of any kind that a drain waits for.
pub struct Work(Arc<Plane>);

impl Plane {
    /// A data plane without a table.
    pub fn new(
        config: Config,
        engine: Engine,
        observer: Observer,
        connections_max: usize,
    ) -> Arc<Self> {
        let metrics = Arc::new(Metrics::new(observer, &config.metrics));
        metrics.memory_budget.set(gauge(config.memory_budget));
        Arc::new(Self {
            table: ArcSwap::default(),
            sessions: Sessions::new(metrics.clone()),
            flows: Flows::default(),
            engine,
            route_threads: Threads::default(),
            connections_max,
            budget: Arc::new(Budget::new(config.memory_budget)),
            audit: Audit::new(&config.audit, metrics.audit.clone()),
            metrics,
            links: Links::default(),
            admission: Admission::default(),
            failures: FailurePacing::default(),
            watches: Watches::default(),
            rights: Rights::default(),
            console: Requests::default(),
            certified: Certified::new(config.agent_mtls_addr.map(|_| {
                let alpn = vec![b"http/1.1".to_vec(), ALPN.to_vec()];
                Arc::new(AgentsTls::new(alpn))
            })),
            rate: ArcSwap::from_pointee(rate_of(&config, 0)),
            shutdown: Shutdown::default(),
            refusing: watch::Sender::new(false),
            exiting: watch::Sender::new(false),
            beats: Beats::default(),
            requests: AtomicUsize::new(0),
            idle: Notify::new(),
            changed: Notify::new(),
            tables: watch::Sender::new(()),
            confirmed: Mutex::new(Instant::now()),
            listening: AtomicBool::new(false),
            config,
        })
    }

    /// Takes a state into use: the table is swapped first, then sessions that
    /// lost their right are cut.
    ///
    /// # Errors
    /// When the state contradicts itself; the old one stays.
    pub fn adopt(&self, state: &State, source: Source) -> Result<(), String> {
        let before = self.table.load_full();
        // What left with an earlier table makes room for what comes.
        self.metrics.sweep();
        let defaults = Defaults {
            requests_max: self.config.cluster_requests_max,
            rate: self.config.cluster_rate_limit.and_then(NonZeroU32::new),
            streams_max: self.config.streams_max,
        };
        let (table, changes) = Table::build(state, source, &before, defaults, &self.metrics)
            .map_err(|why| why.to_string())?;
        let table = Arc::new(table);
        self.table.store(table.clone());
        self.set_rate(state.settings.rate_per_second);
        self.confirm();
        self.metrics
            .snapshot_generation
            .set(gauge(table.generation.0));
        self.metrics.snapshot_source.reset();
        self.metrics
            .snapshot_source
            .with_label_values(&[source.as_str()])
            .set(1);
        for id in changes.gone.iter().chain(&changes.changed) {
            self.cut_what_lost_its_right(id, &before, &table);
        }
        self.rights.end_unlawful(&table, unix_ms());
        self.take_routes(&before, &table, &changes);
        if before.agent_cas != table.agent_cas {
            for session in self.sessions.list(usize::MAX) {
                offer_cas(self, &session);
                leave_with_retired_ca(&session, &table.agent_cas);
            }
        }
        Ok(())
    }

    /// Flows that the new table does not lead anywhere end, agents hear what
    /// they may be asked for, listeners follow.
    fn take_routes(&self, before: &Table, now: &Table, changes: &Changes) {
        for problem in now.routes.problems() {
            if !before.routes.problems().contains(problem) {
                tracing::warn!(%problem, "a route is not served");
            }
        }
        let cut = self.flows.cut_unlawful(now);
        if cut > 0 {
            tracing::info!(flows = cut, "flows that lost their route or right were cut");
        }
        for id in &changes.changed {
            for session in self.sessions.of(id) {
                take_routes(self, &session);
            }
        }
        self.tables.send_replace(());
    }

    /// Told of every new table.
    pub fn table_changes(&self) -> watch::Receiver<()> {
        self.tables.subscribe()
    }

    /// What a data channel of a session with `caps` may run in, for a payload
    /// that is sealed or not; `None` when there is none.
    pub fn form(&self, caps: Caps, is_sealed: bool) -> Option<Form> {
        let trusted = self.config.allow_plaintext_data_channels && caps.has(Caps::PLAIN_CHANNEL);
        match is_sealed || trusted {
            true => Some(Form::Plain),
            false => self.config.tls.is_some().then_some(Form::Tls),
        }
    }

    /// Whether the public listener requires client certificates.
    pub fn wants_certificates(&self) -> bool {
        self.config
            .tls
            .as_ref()
            .is_some_and(|tls| tls.client_ca.is_some())
    }

    /// Whether people come in by the public listener: they have none of their own, and browsers
    /// are not asked for certificates.
    pub fn people_are_public(&self) -> bool {
        self.config.user_addr.is_none() && !self.wants_certificates()
    }

    /// Counts a connection that failed before it asked for anything.
    pub fn handshake_failed(&self, stage: &str, reason: &str) {
        self.metrics
            .handshake_failures
            .with_label_values(&[stage, reason])
            .inc();
    }

    /// An unchanged rate keeps its limiter: an update must not hand out a new burst.
    fn set_rate(&self, from_control: u32) {
        let new = rate_of(&self.config, from_control);
        let rate = |limit: &Option<(NonZeroU32, Limiter)>| limit.as_ref().map(|(rate, _)| *rate);
        if rate(&new) != rate(&self.rate.load()) {
            self.rate.store(Arc::new(new));
        }
    }

    /// Takes one request from the rate of this data plane.
    ///
    /// # Errors
    /// When it is used up: 429 and when to come back.
    pub fn limit_rate(&self) -> Result<(), Refusal> {
        let rate = self.rate.load();
        let Some((rate, limiter)) = rate.as_ref() else {
            return Ok(());
        };
        take(limiter).map_err(|wait| {
            let detail = format!("The data plane's rate is {rate} requests/s.");
            Refusal::new(CloseReason::RateLimited, detail).retry_after(wait)
        })
    }

    fn cut_what_lost_its_right(&self, id: &ClusterId, before: &Table, now: &Table) {
        let (old, new) = (before.floor(id.as_str()), now.floor(id.as_str()));
        let cut = match (old, new) {
            (Some(_), None) => {
                let reason = match now.get(id.as_str()) {
                    Some(_) => CloseReason::Disabled,
                    None => CloseReason::Revoked,
                };
                self.sessions.remove(id, reason)
            }
            (Some(old), Some(new)) if new > old => self.sessions.revoke(id, new),
            _ => return,
        };
        tracing::info!(cluster = %id, sessions = cut, "cluster revoked: its sessions were cut");
    }

    /// Control or the clusters file stands by the table as it is.
    pub fn confirm(&self) {
        *self.confirmed.lock() = Instant::now();
    }

    /// Whether a session of `cluster` with `epoch` may serve by the table in use.
    pub fn may_serve(&self, cluster: &ClusterId, epoch: Epoch) -> bool {
        self.table
            .load()
            .floor(cluster.as_str())
            .is_some_and(|floor| epoch >= floor)
    }

    /// The listeners are bound.
    pub fn set_listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// Whether clients may be sent here: bound, with a table, not draining.
    pub fn is_serving(&self) -> bool {
        self.listening.load(Ordering::Acquire)
            && self.table.load().source != Source::None
            && !self.is_draining()
    }

    /// Whether this data plane is about to stop.
    pub fn is_draining(&self) -> bool {
        self.shutdown.phase() != Phase::Running
    }

    /// Sessions came, went or said something that control wants to know.
    pub fn sessions_changed(&self) {
        self.changed.notify_one();
    }

    /// Resolves after [`sessions_changed`](Self::sessions_changed).
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// From now on new requests are refused too, and listeners close.
    pub fn refuse_requests(&self) {
        self.refusing.send_replace(true);
    }

    /// Resolves once new requests are refused.
    pub async fn refusing(&self) {
        let _ = self
            .refusing
            .subscribe()
            .wait_for(|refusing| *refusing)
            .await;
    }

    /// Everything is told and cut: the threads end.
    pub fn exit(&self) {
        self.exiting.send_replace(true);
    }

    /// Resolves once the threads have to end.
    pub async fn exiting(&self) {
        let _ = self.exiting.subscribe().wait_for(|exiting| *exiting).await;
    }

    /// Ticks as long as the calling thread's loop runs; for ever.
    pub async fn beat(&self) {
        self.beats.beat().await;
    }

    /// Whether every loop ticked lately.
    pub fn is_alive(&self) -> bool {
        self.beats.is_alive()
    }

    /// Begins a request, unless the drain has come so far that it must not.
    pub fn begin(self: &Arc<Self>) -> Option<Work> {
        self.requests.fetch_add(1, Ordering::AcqRel);
        let work = Work(self.clone());
        (!*self.refusing.borrow()).then_some(work)
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.requests.load(Ordering::Acquire)
    }

    /// Resolves when no request is in flight.
    pub async fn idle(&self) {
        loop {
            let mut told = std::pin::pin!(self.idle.notified());
            told.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            told.await;
        }
    }

    /// The last rung of the memory ladder: the largest stalled stream is cut.
    pub fn shed(&self) {
        if self.budget.pressure() < Pressure::Shed {
            return;
        }
        let stalled = self
            .sessions
            .list(usize::MAX)
            .into_iter()
            .filter_map(|session| {
                let (stream, bytes) = session.carrier.largest_stalled()?;
                Some((bytes, stream, session))
            });
        if let Some((bytes, stream, session)) = stalled.max_by_key(|(bytes, ..)| *bytes) {
            tracing::warn!(session = %session.key, bytes, "memory is short: a stalled stream is cut");
            session.carrier.cut(stream, CloseReason::BudgetCut);
        }
    }

    /// Fills the gauges that are only known at scrape time.
    pub fn refresh_metrics(&self) {
        let metrics = &self.metrics;
        metrics.refresh(&self.engine);
        self.flows.count();
        self.sessions.count();
        self.audit.refresh();
        metrics
            .memory_used
            .with_label_values(&["carrier"])
            .set(gauge(self.budget.used()));
        metrics
            .snapshot_age
            .set(gauge(self.confirmed.lock().elapsed().as_secs()));
        metrics.draining.set(i64::from(self.is_draining()));
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.0.requests.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// The lower of what the flag and control allow; 0 is no limit.
fn rate_of(config: &Config, from_control: u32) -> Option<(NonZeroU32, Limiter)> {
    let flag = config.rate_limit.and_then(NonZeroU32::new);
    let limits = flag.into_iter().chain(NonZeroU32::new(from_control));
    limits.min().map(|rate| (rate, limiter(rate)))
}

/// The wall clock in ms.
pub fn unix_ms() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
