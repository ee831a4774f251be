//! Keeps one session with the hub: reconnects with backoff, moves when told to,
//! and says for each failure what was seen, whose side it is, and what to do.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use culvert_engine::legs::Leg;
use culvert_mux::Budget;
use culvert_net::carrier::{CarrierConfig, carrier};
use culvert_net::dial::{Backoff, Dialer, HubUrl, Setback};
use culvert_net::transport::{AgentConn, ConnectError, connect_agent};
use culvert_proto::close::{CloseReason, Retry};
use culvert_proto::control::{AgentFacts, Drain};
use culvert_proto::hello::{AgentHello, Caps};
use culvert_proto::session;
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use tokio::time::{Instant, sleep, timeout_at};

use crate::channel::Way;
use crate::config::hub_url;
use crate::flow::leg::Counted;
use crate::session::{Ended, Next, Session, Shared};

/// Sessions that were left and still finish their streams; one more cuts the oldest.
pub const LEFT_SESSIONS_MAX: usize = 4;

/// How and where to connect.
pub struct Plan {
    /// Opens connections to hubs.
    pub dialer: Arc<Dialer>,
    /// Where to, in order.
    pub hubs: Vec<HubUrl>,
    /// `ws://` is allowed, in drain advice too.
    pub allow_insecure_server: bool,
    /// What the upgrade request says.
    pub hello: AgentHello,
    /// What HELLO says.
    pub facts: AgentFacts,
    /// Memory of all sessions.
    pub budget: Arc<Budget>,
    /// Longest wait between two attempts on our own account.
    pub retry_max: Duration,
    /// Time for streams in flight when the process stops.
    pub drain_grace: Duration,
    /// Uniform over all of u64; a seam.
    pub random: fn() -> u64,
}

/// Keeps the session.
pub struct Connector {
    plan: Plan,
    shared: Arc<Shared>,
    backoff: Backoff,
    attempts: u64,
    /// The other token is being tried because this one was refused.
    other_token: bool,
    /// Dialled, not yet granted. A field, so that stopping finds it.
    fresh: Option<Session>,
    current: Option<Session>,
    left: VecDeque<Session>,
}

impl Connector {
    /// A connector; nothing is dialled yet.
    #[must_use]
    pub fn new(plan: Plan, shared: Arc<Shared>) -> Self {
        Self {
            backoff: Backoff::new(plan.retry_max),
            plan,
            shared,
            attempts: 0,
            other_token: false,
            fresh: None,
            current: None,
            left: VecDeque::new(),
        }
    }

    /// Connects, serves and moves until `shutdown` drains, then finishes what
    /// is in flight within the grace.
    pub async fn run(mut self, shutdown: &Shutdown) {
        tokio::select! {
            never = self.keep_connected() => match never {},
            () = shutdown.reached(Phase::Draining) => {}
        }
        let deadline = Instant::now() + self.plan.drain_grace;
        for session in self.left.iter().chain(&self.current).chain(&self.fresh) {
            session.leave(deadline, CloseReason::Shutdown);
        }
        let all = async {
            let Self {
                left,
                current,
                fresh,
                shared,
                ..
            } = &mut self;
            for session in left.iter_mut().chain(current).chain(fresh) {
                let ended = session.ended().await;
                tracing::info!(
                    code = ended.reason.as_str(),
                    seen = ended.detail,
                    "session closed"
                );
            }
            // Those whose session was lost before are told to nobody and still have their time.
            let _ = timeout_at(deadline, shared.flows.mover().idle()).await;
        };
        tokio::select! {
            () = all => {}
            () = shutdown.reached(Phase::Stopped) => tracing::warn!("stopped before all requests were finished"),
        }
        self.shared.flows.mover().cut();
    }

    async fn keep_connected(&mut self) -> Infallible {
        loop {
            let session = match &mut self.current {
                Some(session) => session,
                None => {
                    let hubs = self.plan.hubs.clone();
                    let session = self.establish(&hubs).await;
                    self.current.insert(session)
                }
            };
            match session.next().await {
                Next::Drain(drain) => self.make_way(&drain).await,
                Next::Ended(ended) => {
                    self.current = None;
                    self.pause_after(&ended).await;
                }
            }
        }
    }

    /// Dials until a hub grants a session.
    async fn establish(&mut self, hubs: &[HubUrl]) -> Session {
        loop {
            match self.dial(hubs).await {
                Ok(conn) => {
                    let session = self.start(conn);
                    let fresh = self.fresh.insert(session);
                    if !fresh.established().await {
                        let ended = fresh.ended().await;
                        self.fresh = None;
                        self.pause_after(&ended).await;
                    } else if let Some(session) = self.fresh.take() {
                        self.enrolled();
                        return session;
                    }
                }
                Err(why) => self.pause_after_failure(&why).await,
            }
        }
    }

    async fn dial(&mut self, hubs: &[HubUrl]) -> Result<AgentConn, ConnectError> {
        if self.attempts > 0 {
            self.shared.metrics.reconnects.inc();
        }
        self.attempts += 1;
        let token = self.shared.tokens.current();
        connect_agent(&self.plan.dialer, hubs, &self.plan.hello, token.as_ref()).await
    }

    fn start(&mut self, conn: AgentConn) -> Session {
        self.other_token = false;
        tracing::info!(
            hub = %conn.url, peer = %conn.peer, carrier = conn.answer.kind.as_str(),
            epoch = conn.answer.epoch.0, proxy = conn.proxy.as_deref().unwrap_or("none"),
            tls = conn.tls.is_some(), "connected"
        );
        let role = session::Role::Agent(self.plan.facts.clone());
        let mut config = CarrierConfig::native(role, session::Config::from(&conn.answer));
        config.mux.streams_max = self.shared.streams_max;
        config.hangup = conn.hangup;
        let leg = Counted::new(&self.shared.metrics, Leg::Carrier, &conn.look);
        let (carrier, driver) = carrier(conn.io, config, self.plan.budget.clone());
        let way = conn.answer.caps.has(Caps::CHANNEL).then_some(Way {
            url: conn.url,
            peer: conn.peer,
            epoch: conn.answer.epoch,
        });
        Session::start(self.shared.clone(), carrier, driver, way, leg)
    }

    /// A join string was good: from now on what is kept counts, not the string.
    fn enrolled(&self) {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let tokens = shared.tokens.clone();
            match tokio::task::spawn_blocking(move || tokens.enrolled()).await {
                Ok(Err(why)) => {
                    tracing::error!(%why, "the token of the join string cannot be kept");
                }
                _ => shared.keep_soon(),
            }
        });
    }

    /// Moves: a random point of the window, the new session first, then the old one is left.
    async fn make_way(&mut self, drain: &Drain) {
        let told = Instant::now();
        let wait = scale(
            Duration::from_millis(drain.reconnect_within_ms.into()),
            (self.plan.random)(),
        );
        tracing::info!(
            wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            addresses = ?drain.addresses, "the hub asks us to move"
        );
        // A session that ends before has to be replaced at once.
        if let Some(current) = &mut self.current {
            tokio::select! {
                () = sleep(wait) => {}
                () = current.over() => {}
            }
        }
        let next = self.establish(&self.advised(drain)).await;
        if let Some(old) = self.current.replace(next) {
            let deadline = told + Duration::from_millis(drain.deadline_ms.into());
            old.leave(deadline, CloseReason::Draining);
            self.left.retain(|session| !session.is_over());
            if self.left.len() == LEFT_SESSIONS_MAX
                && let Some(oldest) = self.left.pop_front()
            {
                oldest.leave(Instant::now(), CloseReason::DrainDeadline);
            }
            self.left.push_back(old);
        }
    }

    /// The advised addresses that we may dial, then the configured ones.
    fn advised(&self, drain: &Drain) -> Vec<HubUrl> {
        let mut hubs = Vec::new();
        for address in &drain.addresses {
            match hub_url(address, self.plan.allow_insecure_server) {
                Ok(url) => hubs.push(url),
                Err(why) => tracing::warn!(%why, "advised hub address not used"),
            }
        }
        hubs.extend(self.plan.hubs.iter().cloned());
        hubs
    }

    async fn pause_after(&mut self, ended: &Ended) {
        self.backoff.session_ended(ended.lived);
        // Whoever was replaced or revoked must not come back at once.
        let setback = match ended.reason.retry() {
            Retry::Slow | Retry::No => Setback::Refused,
            Retry::AtOnce | Retry::Backoff => Setback::Ordinary,
        };
        let wait = self.backoff.next(setback, (self.plan.random)());
        tracing::warn!(
            code = ended.reason.as_str(),
            side = ended.reason.side().as_str(),
            seen = ended.detail,
            fix = ended.reason.fix(),
            lived_s = ended.lived.as_secs(),
            retry_in_ms = millis(wait),
            "session ended"
        );
        sleep(wait).await;
    }

    async fn pause_after_failure(&mut self, why: &ConnectError) {
        let reason = why.close_reason();
        self.shared.metrics.handshake_failed(stage(why), reason);
        let mut setback = why.setback();
        if reason.http_status() == Some(401) {
            // A rotation that was cut short leaves two candidates: try the other one soon.
            if self.shared.tokens.refused() && !self.other_token {
                setback = Setback::Ordinary;
            }
            self.other_token = !self.other_token;
        }
        let wait = self.backoff.next(setback, (self.plan.random)());
        tracing::warn!(
            code = reason.as_str(), side = reason.side().as_str(), seen = %why, fix = reason.fix(),
            retry_in_ms = millis(wait), "cannot connect to the hub"
        );
        sleep(wait).await;
    }
}

fn stage(why: &ConnectError) -> &'static str {
    match why {
        ConnectError::Dial(error) => error.step().as_str(),
        ConnectError::Tls(_) => "tls",
        ConnectError::Refused(refusal) if refusal.status == 401 => "auth",
        _ => "upgrade",
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `random / 2^64` of `window`.
fn scale(window: Duration, random: u64) -> Duration {
    let nanos = (window.as_nanos() * u128::from(random)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
