//! Two connections joined in user space: for TLS legs and streams of a carrier, which no splice
//! reaches.
//!
//! Bytes go through buffers of 64 KiB that belong to the thread and are held only while bytes wait
//! for room: a flow at rest owns none. Half-close travels behind the last byte; any other end is an
//! error, and the sockets of the flow are armed so that their peers see it as one (security.md 3.4).

pub(crate) mod buffer;
mod direction;
mod vigil;

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use culvert_proto::close::CloseReason;
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::carrier::{self, Stream};
use crate::dial::Link;
use crate::listen::progress;
use crate::tls::ServerStream;
use crate::transport::Transport;

pub use buffer::{BUFFER_BYTES, BUFFERS_KEPT_MAX};
use direction::Direction;
pub use vigil::Vigil;

/// One direction has ended and the other moves no byte: longest wait.
pub const HALF_CLOSED_MAX: Duration = Duration::from_secs(3600);
/// Bytes wait for a reader that lives and does not read: longest wait.
pub const STALLED_MAX: Duration = Duration::from_secs(3600);
/// Waits for the last bytes to be acknowledged, first and longest step.
const SETTLE_MIN: Duration = Duration::from_millis(1);
const SETTLE_MAX: Duration = Duration::from_millis(256);

/// One end of a flow.
pub trait End: AsyncRead + AsyncWrite + Unpin {
    /// Its socket, where it has one of its own that can be seen.
    fn socket(&self) -> Option<BorrowedFd<'_>>;
}

impl End for TcpStream {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl<IO: Transport + std::os::fd::AsFd> End for Link<IO> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.bottom().map(|io| io.as_fd())
    }
}

/// Over TLS only `close_notify` is an end.
impl<E: End> End for ServerStream<E> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.get_ref().0.get_ref().socket()
    }
}

impl<E: End + ?Sized> End for Box<E> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        (**self).socket()
    }
}

/// Its carrier has liveness of its own, and a dropped stream is a reset one.
impl End for Stream {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Bytes that are delivered before any that are read.
#[derive(Default)]
pub struct Early {
    /// To the service.
    pub to_service: Bytes,
    /// To the client.
    pub to_client: Bytes,
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// Why; [`CloseReason::Finished`] when both directions ended cleanly.
    pub reason: CloseReason,
    /// Bytes delivered to the service.
    pub to_service: u64,
    /// Bytes delivered to the client.
    pub to_client: u64,
}

/// Arms `socket`: from now on any end but a clean one, a crash too, is RST. Takes the user timeout
/// off, which would cut a peer that pauses.
///
/// # Errors
/// When the kernel refuses.
pub fn arm(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_socket_linger(socket, Some(Duration::ZERO))?;
    crate::socket::lift_user_timeout(&socket)
}

/// Relays between `client` and `service` until both directions have ended, or one end broke. Both
/// are armed; they are disarmed only when everything was delivered and acknowledged, so dropping
/// them after this returns tells their peers the truth.
pub async fn relay<C: End, S: End>(client: &mut C, service: &mut S, early: Early) -> Relayed {
    relay_told(client, service, early, |_, _| {}).await
}

/// As [`relay`]; `tell` hears of bytes delivered to the service and to the client since it was last
/// told.
pub async fn relay_told<C: End, S: End>(
    client: &mut C,
    service: &mut S,
    early: Early,
    mut tell: impl FnMut(u64, u64),
) -> Relayed {
    let mut up = Direction::new(early.to_service);
    let mut down = Direction::new(early.to_client);
    let reason = match run(client, service, (&mut up, &mut down), &mut tell).await {
        Ok(()) => CloseReason::Finished,
        Err(reason) => reason,
    };
    Relayed {
        reason,
        to_service: up.moved(),
        to_client: down.moved(),
    }
}

async fn run<C: End, S: End>(
    client: &mut C,
    service: &mut S,
    (up, down): (&mut Direction, &mut Direction),
    tell: &mut impl FnMut(u64, u64),
) -> Result<(), CloseReason> {
    let mut vigils = [Vigil::new(client.socket()), Vigil::new(service.socket())];
    let sockets = [client.socket(), service.socket()];
    if sockets
        .into_iter()
        .flatten()
        .any(|socket| arm(socket).is_err())
    {
        return Err(CloseReason::Internal);
    }
    let mut clock = Clock::new();
    poll_fn(|cx| {
        let before = (up.moved(), down.moved());
        let turned = turn(cx, client, service, (up, down), &mut vigils, &mut clock);
        if (up.moved(), down.moved()) != before {
            tell(up.moved() - before.0, down.moved() - before.1);
        }
        turned
    })
    .await?;
    for socket in [client.socket(), service.socket()].into_iter().flatten() {
        settle(socket).await?;
    }
    Ok(())
}

/// One look at everything that may have happened.
fn turn<C: End, S: End>(
    cx: &mut Context<'_>,
    client: &mut C,
    service: &mut S,
    (up, down): (&mut Direction, &mut Direction),
    vigils: &mut [Vigil; 2],
    clock: &mut Clock,
) -> Poll<Result<(), CloseReason>> {
    let before = (up.moved(), down.moved());
    let ups = up.poll(cx, client, service).map_err(|end| end.reason())?;
    let downs = down
        .poll(cx, service, client)
        .map_err(|end| end.flipped().reason())?;
    if up.moved() != before.0 {
        vigils[1].wrote();
    }
    if down.moved() != before.1 {
        vigils[0].wrote();
    }
    if (up.moved(), down.moved()) != before {
        clock.moved = Instant::now();
    }
    if ups.is_ready() && downs.is_ready() {
        return Poll::Ready(Ok(()));
    }
    let dead = [CloseReason::ClientDead, CloseReason::UpstreamReset];
    for ((vigil, socket), dead) in vigils
        .iter_mut()
        .zip([client.socket(), service.socket()])
        .zip(dead)
    {
        if vigil.poll(cx, socket).is_err() {
            return Poll::Ready(Err(dead));
        }
    }
    let half = ups.is_ready() || downs.is_ready();
    let stalled = up.waits_for_room() || down.waits_for_room();
    clock.poll(cx, half, stalled).map(Err)
}

/// Time without a byte, watched only while it may end the flow.
struct Clock {
    moved: Instant,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Clock {
    fn new() -> Clock {
        Clock {
            moved: Instant::now(),
            timer: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, half: bool, stalled: bool) -> Poll<CloseReason> {
        let (limit, reason) = match (stalled, half) {
            (true, _) => (STALLED_MAX, CloseReason::StreamStalled),
            (false, true) => (HALF_CLOSED_MAX, CloseReason::ClientIdle),
            (false, false) => {
                self.timer = None;
                return Poll::Pending;
            }
        };
        loop {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let at = self.moved + limit;
            if Instant::now() >= at {
                return Poll::Ready(reason);
            }
            timer.as_mut().reset(at);
        }
    }
}

/// Waits until the peer has acknowledged everything, our FIN too, then disarms.
async fn settle(socket: BorrowedFd<'_>) -> Result<(), CloseReason> {
    let began = Instant::now();
    let mut step = SETTLE_MIN;
    loop {
        match progress(&socket) {
            Ok(seen) if seen.segments_unacked == 0 && seen.bytes_unsent == 0 => break,
            Ok(_) if began.elapsed() < STALLED_MAX => sleep(step).await,
            _ => return Err(CloseReason::StreamStalled),
        }
        step = (step * 2).min(SETTLE_MAX);
    }
    set_socket_linger(socket, None).map_err(|_| CloseReason::Internal)
}

/// Reads what there is, up to a buffer of the thread; nothing is held while nothing comes. Empty at
/// the end.
///
/// # Errors
/// What `io` says.
pub fn poll_some<IO: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    io: &mut IO,
) -> Poll<io::Result<Bytes>> {
    let mut buffer = buffer::take();
    let mut read = ReadBuf::new(&mut buffer);
    let polled = Pin::new(io).poll_read(cx, &mut read);
    let bytes = Bytes::copy_from_slice(read.filled());
    buffer::give_back(buffer);
    polled.map_ok(|()| bytes)
}

/// Which end broke, and how.
pub(crate) struct Broken {
    at_client: bool,
    why: io::Error,
}

impl Broken {
    fn flipped(self) -> Broken {
        Broken {
            at_client: !self.at_client,
            ..self
        }
    }

    fn reason(&self) -> CloseReason {
        tracing::debug!(why = %self.why, at_client = self.at_client, "a flow broke");
        let timed_out = self.why.kind() == io::ErrorKind::TimedOut;
        match (carrier::close_reason(&self.why), self.at_client) {
            (Some(reason), _) => reason,
            (None, true) if timed_out => CloseReason::ClientDead,
            (None, true) => CloseReason::ClientReset,
            (None, false) => CloseReason::UpstreamReset,
        }
    }
}
