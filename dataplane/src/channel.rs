//! The data channels of one session: tickets given out, channels that wait, and
//! how many of them should.
//!
//! The agent dials them (`arrive`). A channel that waits holds no task, no
//! buffer and, without TLS, no place in a runtime; it is looked at when it is
//! claimed and once a second.

pub mod arrive;
mod pool;

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use culvert_net::crypto::{constant_time_eq, hmac_sha256, random_bytes};
use culvert_net::tls::ServerStream;
use culvert_observe::Offsets;
use culvert_proto::channel::{ChannelAnswer, ChannelOffer, Form, OpenTickets, Preface};
use culvert_proto::control::{ChannelFail, Ticket, Tickets};
use culvert_proto::id::Epoch;
use culvert_proto::limits::TICKET_LIFE_MS;

use crate::accept::Place;
use crate::conn::{ClientSocket, InFlight};
use crate::metrics::Metrics;
use crate::observe::Watched;
use crate::observe::socket::Identity;
use pool::Pool;

/// How often channels that wait are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two messages with tickets: a session's messages in a second are
/// bounded, and what is missing is asked for together, ms.
const TICKETS_INTERVAL_MS: u64 = 10;

/// A data channel whose ticket was good.
pub struct Channel {
    /// Its bytes.
    pub io: ChannelIo,
    /// Its place among the connections of its listener.
    pub place: Place,
    /// Who dialled it.
    pub peer: SocketAddr,
}

/// What a channel runs in.
pub enum ChannelIo {
    /// Form 2, of no runtime.
    Plain(PlainSocket),
    /// Form 1.
    Tls(TlsChannel),
}

/// A channel of form 2.
pub struct PlainSocket {
    /// Its bytes.
    pub stream: TcpStream,
    /// How it is counted.
    pub watched: Watched,
    /// How far it was used.
    pub used: Offsets,
}

/// A channel of form 1, and where its socket's news arrive.
pub struct TlsChannel {
    /// Its bytes.
    pub stream: Box<ServerStream<ClientSocket>>,
    /// Keeps the deadlines of idle clients off it.
    busy: InFlight,
    /// The thread that accepted it.
    pub home: Handle,
}

impl TlsChannel {
    /// On the thread that accepted it.
    fn here(stream: ServerStream<ClientSocket>, busy: InFlight) -> Self {
        Self {
            stream: Box::new(stream),
            busy,
            home: Handle::current(),
        }
    }

    /// It is this from its next write on.
    pub fn identify(&self, identity: Identity) {
        self.busy.conn().identify(identity);
    }
}

/// What a ticket was given out for.
enum Purpose {
    /// To wait for a client.
    Park(Form),
    /// To answer one open.
    Open(Form, oneshot::Sender<Channel>),
}

/// Whom a channel is for.
pub enum Admitted {
    /// It waits.
    Park(Form),
    /// A client waits for it.
    Open(oneshot::Sender<Channel>),
}

/// The data channels of one session.
pub struct Channels {
    state: Mutex<State>,
    told: Notify,
    clock: Instant,
    metrics: Arc<Metrics>,
}

struct State {
    tickets: OpenTickets<Purpose>,
    pools: [Pool; 2],
    /// The agent may be sent tickets.
    is_open: bool,
    is_closed: bool,
    /// Before this, no tickets are sent, ms.
    next_tickets_ms: u64,
}

impl State {
    fn pool(&mut self, form: Form) -> &mut Pool {
        &mut self.pools[form as usize - 1]
    }
}

/// An offer to answer one open on a channel. Dropping it takes it back.
pub struct Offered {
    /// For the open's header.
    pub offer: ChannelOffer,
    channels: Arc<Channels>,
    arrived: Option<oneshot::Receiver<Channel>>,
}

impl Channels {
    /// None yet, for the session of `epoch`.
    pub fn new(epoch: Epoch, metrics: Arc<Metrics>) -> Arc<Self> {
        let gauge = |form: Form| metrics.channels.parked.with_label_values(&[form.as_str()]);
        Arc::new(Self {
            state: Mutex::new(State {
                tickets: OpenTickets::new(epoch),
                pools: Form::ALL.map(|form| Pool::new(gauge(form))),
                is_open: false,
                is_closed: false,
                next_tickets_ms: 0,
            }),
            told: Notify::new(),
            clock: Instant::now(),
            metrics,
        })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The agent said HELLO: it takes tickets from now on.
    pub fn open(&self) {
        self.state.lock().is_open = true;
        self.told.notify_one();
    }

    /// The session is over, or about to be: nothing waits any more.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        let parked: Vec<_> = Form::ALL
            .iter()
            .flat_map(|form| state.pool(*form).clear())
            .collect();
        drop(state);
        drop(parked);
    }

    /// Whether the cluster has routes that channels of `form` serve.
    pub fn set_routed(&self, form: Form, routed: bool) {
        let mut state = self.state.lock();
        let pool = state.pool(form);
        if std::mem::replace(&mut pool.is_routed, routed) != routed {
            drop(state);
            self.told.notify_one();
        }
    }

    /// A client wants a channel of `form`: one that waits, if any does.
    pub fn claim(&self, form: Form) -> Option<Channel> {
        let now_ms = self.now_ms();
        let mut state = self.state.lock();
        let pool = state.pool(form);
        let claimed = pool.claim(now_ms);
        drop(state);
        self.told.notify_one();
        claimed
    }

    /// A channel that another client wants after the one it was given broke.
    pub fn claim_again(&self, form: Form) -> Option<Channel> {
        self.state.lock().pool(form).take()
    }

    /// The right to answer one open on a channel.
    pub fn offer(self: &Arc<Self>, form: Form) -> Option<Offered> {
        let ticket = new_ticket();
        let (tell, arrived) = oneshot::channel();
        let now_ms = self.now_ms();
        let mut state = self.state.lock();
        if state.is_closed {
            return None;
        }
        let purpose = Purpose::Open(form, tell);
        let issued = state.tickets.issue(now_ms, form, ticket.clone(), purpose);
        drop(state);
        issued.ok()?;
        Some(Offered {
            offer: ChannelOffer { form, ticket },
            channels: self.clone(),
            arrived: Some(arrived),
        })
    }

    /// Takes the ticket of an arriving channel.
    ///
    /// # Errors
    /// What to answer in place of [`ChannelAnswer::Parked`].
    pub fn redeem(&self, preface: &Preface, mac: &[u8; 32]) -> Result<Admitted, ChannelAnswer> {
        let now_ms = self.now_ms();
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(ChannelAnswer::StaleEpoch);
        }
        let proves =
            |key: &[u8; 32]| constant_time_eq(&hmac_sha256(key, &preface.signed_part()), mac);
        let purpose = state.tickets.redeem(now_ms, preface, proves);
        self.count_ticket(match &purpose {
            Ok(_) => "redeemed",
            Err(_) => "unknown",
        });
        match purpose? {
            Purpose::Open(_, tell) => Ok(Admitted::Open(tell)),
            Purpose::Park(form) => {
                let pool = state.pool(form);
                pool.came();
                match pool.is_full() {
                    true => Err(ChannelAnswer::PoolFull),
                    false => Ok(Admitted::Park(form)),
                }
            }
        }
    }

    /// `channel` waits for a client from now on.
    pub fn park(&self, form: Form, channel: Channel) {
        let now_ms = self.now_ms();
        let mut state = self.state.lock();
        if !state.is_closed {
            state.pool(form).park(now_ms, channel);
        }
    }

    /// The agent could not open a channel.
    pub fn failed(&self, fail: &ChannelFail) {
        let reason = fail.code.close_reason();
        let word = reason.map_or("none", |reason| reason.as_str());
        self.count_failure(word);
        let now_ms = self.now_ms();
        let mut state = self.state.lock();
        match state.tickets.cancel(&fail.id) {
            Some(Purpose::Park(form)) => state.pool(form).failed(now_ms),
            // Who waits for it goes on waiting on the stream.
            Some(Purpose::Open(form, _)) => state.pool(form).pause(now_ms),
            None => {}
        }
    }

    /// Counts a channel that did not come to be.
    pub fn count_failure(&self, reason: &str) {
        let labels = [reason];
        self.metrics
            .channels
            .failed
            .with_label_values(&labels)
            .inc();
    }

    fn count_ticket(&self, result: &str) {
        let tickets = &self.metrics.channels.tickets;
        tickets.with_label_values(&[result]).inc();
    }

    /// Resolves when there is something for [`Channels::tick`] to do.
    pub async fn due(&self) {
        // First, so that a caller who gives up in between has taken no notice away.
        let next_ms = self.state.lock().next_tickets_ms;
        let wait_ms = next_ms.saturating_sub(self.now_ms());
        if wait_ms > 0 {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
        let told = self.told.notified();
        if !self.is_in_use() {
            return told.await;
        }
        let _ = tokio::time::timeout(LOOK_INTERVAL, told).await;
    }

    fn is_in_use(&self) -> bool {
        let now_ms = self.now_ms();
        let state = self.state.lock();
        !state.is_closed
            && (!state.tickets.is_empty() || state.pools.iter().any(|pool| pool.is_used(now_ms)))
    }

    /// Discards what waited too long or broke, and returns the tickets to send
    /// for what is missing.
    pub fn tick(&self) -> Vec<Tickets> {
        let now_ms = self.now_ms();
        let mut state = self.state.lock();
        while let Some(purpose) = state.tickets.expire(now_ms) {
            self.count_ticket("expired");
            if let Purpose::Park(form) = purpose {
                state.pool(form).failed(now_ms);
                self.count_failure("ticket_expired");
            }
        }
        if !state.is_open || state.is_closed || now_ms < state.next_tickets_ms {
            return Vec::new();
        }
        let all: Vec<Tickets> = Form::ALL
            .into_iter()
            .filter_map(|form| {
                let missing = state.pool(form).missing(now_ms);
                let tickets: Vec<Ticket> = (0..missing)
                    .map_while(|_| {
                        let ticket = new_ticket();
                        let issue = ticket.clone();
                        let issued = state
                            .tickets
                            .issue(now_ms, form, issue, Purpose::Park(form));
                        issued.ok().map(|()| ticket)
                    })
                    .collect();
                state.pool(form).asked(tickets.len());
                (!tickets.is_empty()).then(|| Tickets {
                    ttl_s: u32::try_from(TICKET_LIFE_MS / 1000).unwrap_or(30),
                    form,
                    tickets,
                })
            })
            .collect();
        if !all.is_empty() {
            state.next_tickets_ms = now_ms + TICKETS_INTERVAL_MS;
        }
        all
    }

    /// The agent never got `tickets`.
    pub fn unsent(&self, tickets: &Tickets) {
        let now_ms = self.now_ms();
        let mut state = self.state.lock();
        for ticket in &tickets.tickets {
            if let Some(Purpose::Park(form)) = state.tickets.cancel(&ticket.id) {
                state.pool(form).failed(now_ms);
            }
        }
    }
}

impl Offered {
    /// The channel; never, when none will come.
    pub async fn arrived(&mut self) -> Channel {
        if let Some(arrived) = &mut self.arrived
            && let Ok(channel) = arrived.await
        {
            return channel;
        }
        // Asked again, a channel that will not come is still none.
        self.arrived = None;
        std::future::pending().await
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        let mut state = self.channels.state.lock();
        state.tickets.cancel(&self.offer.ticket.id);
    }
}

fn new_ticket() -> Ticket {
    Ticket {
        id: random_bytes(),
        key: random_bytes(),
    }
}
