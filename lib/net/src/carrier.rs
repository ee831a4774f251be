//! One session on one connection: streams by the mux, control messages by the session, bytes by a
//! driver that the caller spawns.
//!
//! ```text
//!  Stream, Carrier (any thread) ──lock──► mux, session ◄──lock── Driver (one task) ◄──► socket
//! ```
//!
//! The driver reads up to 64 KiB at a time, hands it over under one lock, and writes whatever is
//! queued in vectored writes. Reading never waits for writing. It is woken only when it has nothing
//! scheduled. Life is judged by received bytes alone.

mod control;
mod core;
mod driver;
mod error;
mod events;
mod liveness;
mod outbox;
mod shared;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use culvert_mux::{Budget, Mux};
use culvert_proto::close::CloseReason;
use culvert_proto::control::{AgentStats, ChannelFail, Drain, Rotate, Tickets};
use culvert_proto::hello::Caps;
use culvert_proto::limits::{
    STREAM_HEADER_TIMEOUT_MS, WINDOW_OWN_INITIAL_BYTES, WRITE_STALL_TIMEOUT_MS,
};
use culvert_proto::open::StreamHeader;
use culvert_proto::session::{self, VerbError};
use culvert_proto::token::Digest;
use tokio::io::{AsyncRead, AsyncWrite};

pub use control::SessionEvent;
pub use driver::{CarrierEnd, Driver};
pub use error::{OpenError, close_reason, close_reason_in};
pub use shared::Incoming;
pub use stream::Stream;

use self::core::Core;
use crate::hangup::Hangup;
use shared::Shared;

/// A stream's header must have arrived this long after the stream was opened.
pub const HEADER_MS_MAX: u64 = STREAM_HEADER_TIMEOUT_MS;
/// What is said at the end (BYE, GoAway) must be written within this.
pub const CLOSE_FLUSH_MS_MAX: u64 = 500;
/// Events that nobody fetched; then the control stream is not read, and credit stops the peer.
pub const EVENTS_MAX: usize = 64;
/// Bytes of control messages that wait for credit; then the control stream is not read.
pub const CONTROL_QUEUE_BYTES_MAX: usize = 64 * 1024;
/// A stream that this side finished and dropped waits this long for the peer's end.
pub const LINGER_MS_MAX: u64 = 10_000;
/// Bytes of such a stream that are read to find its end.
pub const LINGER_BYTES_MAX: usize = 256 * 1024;

/// Which end of the carrier this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Opens streams.
    Hub,
    /// Dialled, and accepts streams.
    Agent,
}

/// What runs on the mux.
pub enum Style {
    /// culvert/1: a control stream, and a header on every stream. Life by BEAT.
    Native(session::Role, session::Config),
    /// A Radar connector: streams only, no header. The hub pings every 15 s; dead after 45 s.
    Radar,
}

/// How a carrier behaves.
pub struct CarrierConfig {
    /// Which end this is.
    pub end: End,
    /// What runs on the mux.
    pub style: Style,
    /// Limits of the mux; role, control stream and its place are set by [`carrier`].
    pub mux: culvert_mux::Config,
    /// A write without progress for this long ends the carrier.
    pub write_stall_max: Duration,
    /// Given whenever the carrier does not end in an orderly way, before its io is dropped.
    pub hangup: Hangup,
}

impl CarrierConfig {
    /// culvert/1 with the limits of contract section 16; the role says which end this is. `config`
    /// holds what both ends agreed on: the first window of a stream goes by it.
    #[must_use]
    pub fn native(role: session::Role, config: session::Config) -> CarrierConfig {
        let end = match role {
            session::Role::Hub(_) => End::Hub,
            session::Role::Agent(_) => End::Agent,
        };
        let mut carrier = CarrierConfig::new(end, Style::Native(role, config));
        // No end of culvert/1 waits for an ACK.
        carrier.mux.ack_at_once = false;
        if config.caps.has(Caps::SMALL_WINDOW) {
            carrier.mux.window_initial = WINDOW_OWN_INITIAL_BYTES;
        }
        carrier
    }

    /// A Radar carrier. Its peers send one message as large as their credit: windows stay small
    /// enough for the message limit.
    #[must_use]
    pub fn radar(end: End) -> CarrierConfig {
        let mut config = CarrierConfig::new(end, Style::Radar);
        config.mux.window_max = culvert_proto::limits::WINDOW_FOREIGN_MAX_BYTES;
        config
    }

    fn new(end: End, style: Style) -> CarrierConfig {
        let role = match end {
            End::Hub => culvert_mux::Role::Client,
            End::Agent => culvert_mux::Role::Server,
        };
        CarrierConfig {
            end,
            style,
            mux: culvert_mux::Config::new(role),
            write_stall_max: Duration::from_millis(WRITE_STALL_TIMEOUT_MS),
            hangup: Hangup::default(),
        }
    }
}

/// Starts a session on `io`. Nothing happens until the driver is polled: spawn it.
pub fn carrier<T>(io: T, config: CarrierConfig, budget: Arc<Budget>) -> (Carrier, Driver<T>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let CarrierConfig {
        end,
        style,
        mut mux,
        write_stall_max,
        hangup,
    } = config;
    mux.role = match end {
        End::Hub => culvert_mux::Role::Client,
        End::Agent => culvert_mux::Role::Server,
    };
    mux.accept_streams = end == End::Agent;
    if end == End::Agent {
        mux.hash_seed = u64::from_ne_bytes(crate::crypto::random_bytes());
        // The rates are the hub's protection from agents. A hub opens as many as it has requests.
        (mux.opens_per_second_max, mux.resets_per_second_max) = (u32::MAX, u32::MAX);
    }
    if matches!(style, Style::Native(..)) {
        mux.first_stream = Some(control::STREAM);
        // The control stream takes no client's place. The agent counts a stream until its task has
        // let go of it, later than the hub does: it needs slack to take what the hub may open.
        let slack = if end == End::Agent {
            mux.streams_max / 4 + 1
        } else {
            0
        };
        mux.streams_max = mux.streams_max.saturating_add(1 + slack);
    }
    let shared = Arc::new(Shared::new(end, style, Mux::new(mux, budget)));
    (
        Carrier {
            shared: shared.clone(),
        },
        Driver::new(io, shared, write_stall_max, hangup),
    )
}

/// A handle on a session. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Carrier {
    shared: Arc<Shared>,
}

impl Carrier {
    /// Opens a stream. SYN and header are queued at once; `header` is required on culvert/1 and
    /// must be absent on a Radar carrier.
    ///
    /// # Errors
    /// When the session is full, draining or over; the session itself lives on.
    pub fn open(&self, header: Option<&StreamHeader>) -> Result<Stream, OpenError> {
        Shared::open(&self.shared, header)
    }

    /// The next stream that the hub opened, with its header. `None` when the carrier ended.
    pub async fn accept(&self) -> Option<Incoming> {
        Shared::accept(&self.shared).await
    }

    /// The next thing the other end told. `None` when the carrier ended and all was fetched.
    pub async fn event(&self) -> Option<SessionEvent> {
        self.shared.event().await
    }

    /// Hub: asks the agent to move elsewhere.
    ///
    /// # Errors
    /// When the agent cannot drain (a Radar connector never can), or the session is over.
    pub fn drain(&self, drain: Drain) -> Result<(), VerbError> {
        self.shared.verb(|session| session.drain(drain))?;
        self.shared.lock().set_draining();
        Ok(())
    }

    /// Hub: hands the agent a new token. [`SessionEvent::Rotated`] answers.
    ///
    /// # Errors
    /// When the agent cannot rotate, too many rotations wait, or the session is over.
    pub fn rotate(&self, rotate: Rotate) -> Result<(), VerbError> {
        self.shared.verb(|session| session.rotate(rotate))
    }

    /// Agent: the new token is stored durably.
    ///
    /// # Errors
    /// When no rotation was asked for, or the session is over.
    pub fn rotated(&self, digest: Digest) -> Result<(), VerbError> {
        self.shared.verb(|session| session.rotated(digest))
    }

    /// Agent: what it measured in the last 10 s.
    ///
    /// # Errors
    /// When the hub does not take it, or the session is not open.
    pub fn stats(&self, stats: AgentStats) -> Result<(), VerbError> {
        self.shared.verb(|session| session.stats(stats))
    }

    /// Hub: rights to open data channels.
    ///
    /// # Errors
    /// When the agent opens none, or the session is not open.
    pub fn tickets(&self, tickets: Tickets) -> Result<(), VerbError> {
        self.shared.verb(|session| session.tickets(tickets))
    }

    /// Agent: asks for a certificate in place of its own. [`ControlMessage::Cert`] answers.
    ///
    /// # Errors
    /// When the hub renews nothing, or the session is not open.
    pub fn renew(&self, csr: Vec<u8>) -> Result<(), VerbError> {
        self.shared.verb(|session| session.renew(csr))
    }

    /// Hub: a new certificate, or an empty chain, and the CAs that are trusted now.
    ///
    /// # Errors
    /// When the agent renews nothing, or the session is not open.
    pub fn cert(&self, chain: String, ca_bundle: String) -> Result<(), VerbError> {
        self.shared.verb(|session| session.cert(chain, ca_bundle))
    }

    /// Agent: a data channel could not be opened.
    ///
    /// # Errors
    /// When the hub asked for none, or the session is not open.
    pub fn channel_fail(&self, fail: ChannelFail) -> Result<(), VerbError> {
        self.shared.verb(|session| session.channel_fail(fail))
    }

    /// Hub: other targets from now on.
    ///
    /// # Errors
    /// When this is no hub, or the session is over.
    pub fn grant(&self, targets: Vec<Arc<str>>) -> Result<(), VerbError> {
        self.shared.verb(|session| session.grant(targets))
    }

    /// Ends the session: all streams end now with `reason`, BYE and GoAway are sent if the socket
    /// takes them within half a second. Does nothing when it is over already.
    pub fn close(&self, reason: CloseReason) {
        self.shared.close(reason);
    }

    /// Takes no new streams from now on; live ones go on. The other end hears
    /// [`SessionEvent::PeerDraining`], and what it opens from then on fails as draining.
    pub fn retire(&self) {
        self.shared.retire();
    }

    /// After [`Carrier::retire`]: the other end has heard of it, and every stream that it opened
    /// before is here. One task may wait for this or [`Carrier::idle`]. Ends with the session.
    pub async fn heard(&self) {
        self.shared.leaving(|core| core.heard).await;
    }

    /// Waits until no stream lives: all were answered, and the other end finished them too. Ends
    /// with the session.
    pub async fn idle(&self) {
        self.shared.leaving(Core::is_idle).await;
    }

    /// Whether either end asked to drain.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.lock().is_draining()
    }

    /// Streams with a handle.
    #[must_use]
    pub fn live_streams(&self) -> u32 {
        self.shared.lock().live_streams()
    }

    /// The last measured round trip, milliseconds.
    #[must_use]
    pub fn rtt_ms(&self) -> Option<u32> {
        self.shared.lock().rtt_ms()
    }

    /// How long writers of streams waited for the peer's credit or the carrier, added up over
    /// streams; a wait counts when it is over.
    #[must_use]
    pub fn write_stall(&self) -> Duration {
        self.shared.stall()
    }

    /// Counts and sizes of the mux.
    #[must_use]
    pub fn mux_stats(&self) -> culvert_mux::Stats {
        self.shared.lock().mux_stats()
    }

    /// The stalled stream that holds most memory, and its bytes: for the last rung of the budget.
    #[must_use]
    pub fn largest_stalled(&self) -> Option<(culvert_mux::StreamId, usize)> {
        self.shared.lock().largest_stalled()
    }

    /// Resets one stream; its handle reads `reason`.
    pub fn cut(&self, stream: culvert_mux::StreamId, reason: CloseReason) {
        self.shared.cut(stream, reason);
    }

    /// Why the session is over, if it is.
    #[must_use]
    pub fn ended(&self) -> Option<CloseReason> {
        self.shared.lock().ended()
    }

    /// Waits for the end of the session.
    pub async fn closed(&self) -> CloseReason {
        self.shared.closed().await
    }
}
