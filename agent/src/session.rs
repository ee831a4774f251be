//! One session with a hub: its streams, its advice, its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use culvert_net::carrier::{Carrier, CarrierEnd, Driver, Incoming, SessionEvent, Stream};
use culvert_proto::close::CloseReason;
use culvert_proto::control::{AgentStats, ControlMessage, Drain, Grant};
use culvert_proto::limits;
use culvert_proto::open::{DialAnswer, StreamHeader, StreamKind};
use culvert_proto::session::RotateOutput;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout_at};
use tokio_util::task::TaskTracker;

use crate::channel::{Channels, Granted, Opener, Way};
use crate::credential::{Tokens, take_token};
use crate::enrol::{Identity, take_certificate};
use crate::flow::leg::Counted;
use crate::flow::{Flows, dial_code};
use crate::metrics::AgentMetrics;
use crate::mirror::Mirror;
use crate::serve::Service;
use crate::serve::answer::Failure;
use crate::target::DEFAULT_NAME;

/// Streams that crossed our "no more" on the wire are served. The hub says when it has heard it;
/// one that does not say so is waited for this long, and streams that come later are refused.
const CROSSING: Duration = Duration::from_secs(1);
/// From the end of a connection's stream to ours: the hub's readers take the last bytes.
const LAST_WORDS: Duration = Duration::from_millis(200);
const STATS_EVERY: Duration = Duration::from_millis(limits::STATS_INTERVAL_MS);

/// What all sessions of a process share.
pub struct Shared {
    /// Answers requests.
    pub service: Arc<Service>,
    /// Serves connections to services.
    pub flows: Arc<Flows>,
    /// Opens data channels.
    pub opener: Arc<Opener>,
    /// Proves who we are.
    pub tokens: Arc<Tokens>,
    /// Proves it by certificate, in place of a token.
    pub identity: Option<Arc<Identity>>,
    /// Keeps both where a new pod finds them.
    pub mirror: Option<Arc<Mirror>>,
    /// Counts.
    pub metrics: Arc<AgentMetrics>,
    /// Streams one session may carry.
    pub streams_max: u32,
    /// Sessions established now.
    pub established: AtomicUsize,
}

impl Shared {
    /// Whether a session is established.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.established.load(Ordering::Acquire) > 0
    }
}

/// What the hub said about the session as a whole.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The grant came: streams are served.
    pub established: bool,
    /// Connect elsewhere first, then leave.
    pub drain: Option<Drain>,
}

/// How a session ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Why.
    pub reason: CloseReason,
    /// What was seen.
    pub detail: String,
    /// How long it was established.
    pub lived: Duration,
}

/// What happened to a session.
pub enum Next {
    /// Connect elsewhere first, then leave.
    Drain(Drain),
    /// It is over.
    Ended(Ended),
}

/// A handle on a running session. Dropped, the session goes on.
pub struct Session {
    told: watch::Receiver<Told>,
    leave: watch::Sender<Option<Leave>>,
    task: JoinHandle<Ended>,
}

#[derive(Clone, Copy)]
struct Leave {
    deadline: Instant,
    reason: CloseReason,
}

impl Session {
    /// Starts a session on a carrier. It opens data channels where `way` says.
    pub fn start<T>(
        shared: Arc<Shared>,
        carrier: Carrier,
        driver: Driver<T>,
        way: Option<Way>,
        leg: Counted,
    ) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (tell, told) = watch::channel(Told::default());
        let (leave, orders) = watch::channel(None);
        let granted = Arc::<Granted>::default();
        let channels = way.map(|way| {
            let opener = shared.opener.clone();
            Arc::new(Channels::new(opener, way, carrier.clone(), granted.clone()))
        });
        let running = Running {
            slots: Arc::new(Semaphore::new(shared.streams_max as usize)),
            carrier,
            shared,
            leg,
            stall_told: Mutex::default(),
            tell,
            granted,
            channels,
            connected: AtomicBool::new(false),
            since: None,
            streams: TaskTracker::new(),
        };
        let driver = tokio::spawn(driver);
        Self {
            told,
            leave,
            task: tokio::spawn(running.run(driver, orders)),
        }
    }

    /// Resolves when the hub granted what may be reached; `false` when the
    /// session ended before.
    pub async fn established(&mut self) -> bool {
        self.told.wait_for(|told| told.established).await.is_ok()
    }

    /// The next thing the one who keeps the session has to act on.
    pub async fn next(&mut self) -> Next {
        let Self { told, task, .. } = self;
        tokio::select! {
            biased;
            ended = &mut *task => Next::Ended(Ended::from_task(ended)),
            Ok(told) = told.wait_for(|told| told.drain.is_some()) => {
                Next::Drain(told.drain.clone().unwrap_or_default())
            }
        }
    }

    /// Takes no new streams, lets the open ones finish until `deadline`, then
    /// says goodbye for `reason`.
    pub fn leave(&self, deadline: Instant, reason: CloseReason) {
        self.leave.send_replace(Some(Leave { deadline, reason }));
    }

    /// Whether it ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Resolves at the end and leaves [`Session::ended`] to tell why.
    pub async fn over(&mut self) {
        // The running part holds the sender until it returns.
        while self.told.changed().await.is_ok() {}
    }

    /// Waits for the end.
    pub async fn ended(&mut self) -> Ended {
        Ended::from_task((&mut self.task).await)
    }
}

impl Ended {
    fn from_task(ended: Result<Self, JoinError>) -> Self {
        ended.unwrap_or_else(|why| Self {
            reason: CloseReason::Internal,
            detail: why.to_string(),
            lived: Duration::ZERO,
        })
    }
}

struct Running {
    carrier: Carrier,
    shared: Arc<Shared>,
    /// The carrier's connection, as it is counted.
    leg: Counted,
    /// What was told of waits for the mux.
    stall_told: Mutex<Duration>,
    tell: watch::Sender<Told>,
    slots: Arc<Semaphore>,
    granted: Arc<Granted>,
    channels: Option<Arc<Channels>>,
    /// Connections were served on streams.
    connected: AtomicBool,
    since: Option<Instant>,
    streams: TaskTracker,
}

impl Running {
    async fn run(
        mut self,
        mut driver: JoinHandle<CarrierEnd>,
        mut orders: watch::Receiver<Option<Leave>>,
    ) -> Ended {
        let mut stats = interval(STATS_EVERY);
        stats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let carrier = self.carrier.clone();
        let mut leaving: Option<Leaving> = None;
        let ended = loop {
            tokio::select! {
                end = &mut driver => break end,
                // Nothing is served before the hub said what may be reached.
                Some(incoming) = carrier.accept(), if self.since.is_some() => {
                    self.take(incoming, leaving.as_ref());
                }
                Some(event) = carrier.event() => self.hear(event).await,
                _ = stats.tick() => self.report(),
                Ok(()) = orders.changed() => {
                    let order = *orders.borrow_and_update();
                    leaving = order.map(|leave| self.leave(leave, leaving.take()));
                }
                reason = self.done(leaving.as_ref()) => {
                    carrier.close(reason);
                    leaving = leaving.map(|leaving| Leaving { said: true, ..leaving });
                }
            }
        };
        self.end(ended)
    }

    fn take(&self, incoming: Incoming, leaving: Option<&Leaving>) {
        let Incoming { header, stream, .. } = incoming;
        // A carrier without headers is not ours to serve; drop = reset.
        let Some(header) = header else {
            return;
        };
        let slot = self.slots.clone().try_acquire_owned();
        let mut refused = None;
        if slot.is_err() {
            let most = self.shared.streams_max;
            refused = Some(Failure::new(
                CloseReason::TooManyStreams,
                format_args!("the agent serves {most} streams already (--max-conns)"),
            ));
        } else if leaving.is_some_and(|leaving| leaving.began.elapsed() > CROSSING) {
            refused = Some(Failure::new(
                CloseReason::AgentDraining,
                "this agent is about to stop",
            ));
        }
        let open = self.shared.metrics.open_stream();
        let held = (slot, open);
        if header.kind == StreamKind::Tcp {
            return self.connect(header, stream, refused, held);
        }
        let refused = refused.or_else(|| self.forbidden(header.target.as_deref()));
        let service = self.shared.service.clone();
        self.streams.spawn(async move {
            service.serve(header, stream, refused).await;
            drop(held);
        });
    }

    /// A connection to a service.
    fn connect<H: Send + 'static>(
        &self,
        mut header: StreamHeader,
        stream: Stream,
        refused: Option<Failure>,
        held: H,
    ) {
        let flows = self.shared.flows.clone();
        let (granted, channels) = (self.granted.clone(), self.channels.clone());
        let offer = header.offer.take();
        self.connected.store(true, Ordering::Relaxed);
        self.streams.spawn(async move {
            if let Some(why) = refused {
                let answer = DialAnswer {
                    code: dial_code(why.reason),
                    reason: why.detail,
                };
                flows.refused(&header, &answer);
                flows.refuse(stream, &answer).await;
            } else if let (Some(offer), Some(channels)) = (offer, channels) {
                Box::pin(channels.answer(&header, &offer, stream)).await;
            } else {
                let grant = granted.get();
                flows.on_stream(&header, grant.as_deref(), stream).await;
            }
            drop(held);
        });
    }

    /// Both lists have to hold the target: the agent's own, and the hub's grant.
    fn forbidden(&self, named: Option<&str>) -> Option<Failure> {
        let target = self.shared.service.upstream().target();
        let asked = named.unwrap_or_default();
        if !target.answers_to(asked) {
            return Some(Failure::new(
                CloseReason::TargetNotAllowed,
                format_args!(
                    "the hub asks for {asked:?}; this agent serves {} only",
                    target.address()
                ),
            ));
        }
        let granted = self.granted.get().is_some_and(|grant| match named {
            Some(name) => grant.targets.iter().any(|one| **one == *name),
            None => {
                // Names of services say nothing about the target, which is an address.
                let mut targets = grant.targets.iter().filter(|one| is_target(one)).peekable();
                targets.peek().is_none() || targets.any(|one| target.answers_to(one))
            }
        });
        (!granted).then(|| {
            Failure::new(
                CloseReason::TargetNotAllowed,
                "the hub has not granted its own target",
            )
        })
    }

    async fn hear(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Granted(grant) => self.granted(grant),
            SessionEvent::Drain(drain) => {
                self.tell.send_modify(|told| told.drain = Some(drain));
            }
            SessionEvent::Rotate(RotateOutput(rotate)) => {
                let Shared { tokens, mirror, .. } = &*self.shared;
                let mirror = mirror.as_ref();
                take_token(tokens.clone(), rotate.token, mirror, &self.carrier).await;
            }
            SessionEvent::Message(ControlMessage::Cert { chain, ca_bundle }) => {
                if let Some(identity) = self.shared.identity.clone() {
                    take_certificate(identity, chain, ca_bundle).await;
                    self.shared.keep_soon();
                }
            }
            SessionEvent::Message(ControlMessage::Tickets(tickets)) => {
                if let Some(channels) = &self.channels {
                    channels.open_all(tickets);
                }
            }
            // GoAway comes with the BYE that ends the session.
            other => tracing::debug!(?other, "unexpected message"),
        }
    }

    fn granted(&mut self, grant: Grant) {
        tracing::debug!(epoch = grant.epoch.0, targets = ?grant.targets, "granted");
        if self.granted.set(grant).is_none() {
            self.since = Some(Instant::now());
            let before = self.shared.established.fetch_add(1, Ordering::AcqRel);
            self.shared.metrics.connected.set(1);
            tracing::debug!(sessions = before + 1, "session established");
            self.tell.send_modify(|told| told.established = true);
            if let Some(identity) = self.shared.identity.clone() {
                tokio::spawn(identity.stay_fresh(self.carrier.clone()));
            }
            self.report();
        }
    }

    fn tell_stall(&self) {
        let now = self.carrier.write_stall();
        let before = std::mem::replace(&mut *self.stall_told.lock(), now);
        let more = now.saturating_sub(before);
        if !more.is_zero() {
            self.shared.metrics.mux_stalled(more);
        }
    }

    fn report(&self) {
        self.tell_stall();
        let metrics = &self.shared.metrics;
        if let Some(ms) = self.carrier.rtt_ms() {
            metrics.round_trip(Duration::from_millis(ms.into()));
        }
        if self.since.is_none() {
            return;
        }
        let dial = metrics.dial_percentiles();
        let stats = AgentStats {
            dial_p50_us: dial.map(|(p50, _)| p50),
            dial_p99_us: dial.map(|(_, p99)| p99),
            target_errors: Some(metrics.upstream_errors.get()),
            pool_idle: self.channels.as_ref().and_then(|_| metrics.channels_warm()),
            streams: u32::try_from(self.streams.len()).ok(),
            ..AgentStats::default()
        };
        // A hub that does not take them simply has none.
        let _ = self.carrier.stats(stats);
    }

    fn leave(&self, leave: Leave, before: Option<Leaving>) -> Leaving {
        if before.is_none() {
            self.carrier.retire();
            self.streams.close();
        }
        let began = before.map_or_else(Instant::now, |before| before.began);
        Leaving {
            leave,
            began,
            said: false,
        }
    }

    /// Resolves when nothing keeps a leaving session: every stream ended and was sent, or time is
    /// up.
    async fn done(&self, leaving: Option<&Leaving>) -> CloseReason {
        let Some(Leaving {
            leave,
            began,
            said: false,
        }) = leaving
        else {
            return std::future::pending().await;
        };
        let idle = async {
            // Late or not, what came is served.
            let _ = timeout_at(*began + CROSSING, self.carrier.heard()).await;
            self.retire_channels();
            self.streams.wait().await;
            // The hub ends the flows of a session soon after its end, unless this agent comes back.
            if leave.reason == CloseReason::Shutdown {
                self.shared.flows.mover().idle().await;
            }
            // Their last bytes may still be on the way to the hub.
            self.carrier.idle().await;
            // A request ends when its answer was read; of a connection nobody says so.
            if self.connected.load(Ordering::Relaxed) {
                sleep(LAST_WORDS).await;
            }
        };
        tokio::select! {
            () = idle => leave.reason,
            () = sleep_until(leave.deadline) => CloseReason::DrainDeadline,
        }
    }

    fn retire_channels(&self) {
        if let Some(channels) = &self.channels {
            channels.retire();
        }
    }

    fn end(&self, ended: Result<CarrierEnd, JoinError>) -> Ended {
        self.retire_channels();
        let (reason, detail) = match ended {
            Ok(end) => (end.reason, end.detail),
            Err(why) => (CloseReason::Internal, why.to_string()),
        };
        self.leg.ends(reason);
        self.tell_stall();
        let lived = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        if self.since.is_some() {
            let left = self.shared.established.fetch_sub(1, Ordering::AcqRel) - 1;
            self.shared.metrics.connected.set(i64::from(left > 0));
            self.shared.metrics.session_ended(lived, reason);
        }
        Ended {
            reason,
            detail,
            lived,
        }
    }
}

struct Leaving {
    leave: Leave,
    began: Instant,
    /// The goodbye is on its way; what remains is the driver's end.
    said: bool,
}

/// Whether a granted name is an address, or the name that stands for the only one.
fn is_target(name: &str) -> bool {
    name == DEFAULT_NAME || name.contains(':')
}
