//! The one task that moves a carrier's bytes.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use culvert_mux::Violation;
use culvert_proto::close::CloseReason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep_until};
use tokio_util::io::poll_read_buf;

use crate::hangup::Hangup;

use super::CLOSE_FLUSH_MS_MAX;
use super::core::Core;
use super::liveness::{Due, Liveness};
use super::outbox::Outbox;
use super::shared::{Shared, Wakes};

/// One read from the socket.
const READ_BYTES: usize = 64 * 1024;
/// A read buffer with less room than this is exchanged.
const READ_BYTES_MIN: usize = 16 * 1024;
/// Rounds of read and write before other tasks get a turn.
const ROUNDS_MAX: usize = 2;

thread_local! {
    /// One read buffer for all carriers of a thread: an idle carrier owns none.
    static READ_BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// How a carrier ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarrierEnd {
    /// Why.
    pub reason: CloseReason,
    /// What was seen.
    pub detail: String,
}

/// Moves the bytes of one carrier. Spawn it; it ends with the carrier. Dropped before that, it
/// ends the carrier.
#[must_use = "a carrier does nothing unless its driver is polled"]
pub struct Driver<T> {
    io: T,
    shared: Arc<Shared>,
    wakes: Wakes,
    outbox: Outbox,
    /// Radar carriers; on culvert/1 the session does this.
    liveness: Option<Liveness>,
    timer: Pin<Box<Sleep>>,
    timer_ms: u64,
    phase: Phase,
    hangup: Hangup,
}

enum Phase {
    Running,
    /// The last words are being written, then the peer's end is awaited.
    Closing {
        end: CarrierEnd,
        deadline_ms: u64,
        is_shut: bool,
    },
    Done,
}

/// What a round found.
enum Round {
    /// Something moved: another round may find more.
    Moved,
    /// Everything waits; wakers are registered.
    Idle,
    Over(CarrierEnd),
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = CarrierEnd;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CarrierEnd> {
        let this = &mut *self;
        let mut buffer = READ_BUFFER.take();
        let mut result = Poll::Pending;
        let mut again = false;
        for round in 0..=ROUNDS_MAX {
            if round == ROUNDS_MAX {
                cx.waker().wake_by_ref();
                break;
            }
            match this.round(cx, &mut buffer, again) {
                Round::Moved => again = true,
                Round::Idle => break,
                Round::Over(end) => {
                    this.end(end.reason);
                    result = Poll::Ready(end);
                    break;
                }
            }
        }
        READ_BUFFER.set(buffer);
        result
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    pub(super) fn new(
        io: T,
        shared: Arc<Shared>,
        write_stall_max: Duration,
        hangup: Hangup,
    ) -> Driver<T> {
        let has_control = shared.lock().control.is_some();
        let start = shared.instant(0);
        Driver {
            io,
            wakes: Wakes::default(),
            outbox: Outbox::new(u64::try_from(write_stall_max.as_millis()).unwrap_or(u64::MAX)),
            liveness: (!has_control).then(Liveness::new),
            timer: Box::pin(sleep_until(start)),
            timer_ms: 0,
            phase: Phase::Running,
            hangup,
            shared,
        }
    }

    /// One read, one visit to the shared state, as many writes as the socket takes.
    fn round(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut, again: bool) -> Round {
        if let Phase::Closing { .. } = self.phase {
            return self.closing_round(cx, buffer);
        }
        let received = match self.poll_read(cx, buffer) {
            Poll::Ready(Ok(Some(data))) => Some(data),
            Poll::Ready(Ok(None)) => {
                return over(CloseReason::CarrierLost, "the connection ended without BYE");
            }
            Poll::Ready(Err(error)) => return over(CloseReason::CarrierLost, &error),
            Poll::Pending => None,
        };
        let moved = received.is_some();
        // The visit of an earlier round found nothing more to do, and its wakers are in place.
        if again && !moved && self.outbox.is_idle() {
            return Round::Idle;
        }
        let now_ms = self.shared.now_ms();
        if let Err(end) = self.visit(cx, now_ms, received) {
            return end;
        }
        let wrote = match self.outbox.poll_write(cx, &mut self.io, now_ms) {
            Ok(wrote) => wrote,
            Err(error) => return over(CloseReason::CarrierLost, &error),
        };
        if let Some(stalled_ms) = self.outbox.stall_deadline_ms() {
            if now_ms >= stalled_ms {
                return over(
                    CloseReason::WriteStalled,
                    "a write made no progress in time",
                );
            }
            self.arm(stalled_ms);
        }
        if self.timer_is_due(cx) {
            self.outbox.drained = false;
            return Round::Moved;
        }
        if moved || wrote {
            Round::Moved
        } else {
            Round::Idle
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<Option<Bytes>>> {
        if buffer.capacity() < READ_BYTES_MIN {
            // Reuses the same memory when nobody holds a part of it any more.
            buffer.reserve(READ_BYTES);
        }
        let bytes = ready!(poll_read_buf(Pin::new(&mut self.io), cx, buffer))?;
        Poll::Ready(Ok((bytes > 0).then(|| buffer.split().freeze())))
    }

    /// The one lock of a round: hands over what was read, does what is due, fetches what to write.
    fn visit(
        &mut self,
        cx: &mut Context<'_>,
        now_ms: u64,
        received: Option<Bytes>,
    ) -> Result<(), Round> {
        let shared = self.shared.clone();
        let mut core = shared.lock();
        core.set_driver(cx.waker());
        let mut result = match core.ended() {
            Some(reason) => Err((reason, "closed by this side".to_owned())),
            None => self.advance(&mut core, now_ms, received),
        };
        if result.is_ok() {
            self.outbox.fetch(&mut core.mux, now_ms);
            // Nothing is left to fetch, so the write that follows ends this turn; whoever queues
            // more in the meantime calls for another.
            core.parked = self.outbox.drained;
            result = core.drain_events(now_ms, &mut self.wakes);
        }
        if let Err((reason, detail)) = result {
            self.begin_close(&mut core, now_ms, CarrierEnd { reason, detail });
        }
        let next_ms = self.next_timeout_ms(&mut core);
        drop(core);
        self.shared.wake(&mut self.wakes);
        self.arm(next_ms);
        match &self.phase {
            // Nobody listens any more: no last words.
            Phase::Closing { end, .. } if end.reason == CloseReason::CarrierDead => {
                Err(Round::Over(end.clone()))
            }
            Phase::Closing { .. } => Err(Round::Moved),
            Phase::Running | Phase::Done => Ok(()),
        }
    }

    fn advance(
        &mut self,
        core: &mut Core,
        now_ms: u64,
        received: Option<Bytes>,
    ) -> Result<(), (CloseReason, String)> {
        if let Some(data) = received {
            if let Some(control) = &mut core.control {
                control.session.on_bytes_received(now_ms);
            }
            if let Some(liveness) = &mut self.liveness {
                liveness.received(now_ms);
            }
            core.mux.receive(now_ms, data).map_err(violated)?;
        }
        if core.mux.next_timeout_ms().is_some_and(|at| at <= now_ms) {
            core.mux.handle_timeout(now_ms);
        }
        core.expire(now_ms);
        core.drain_events(now_ms, &mut self.wakes)?;
        if let Some(control) = &mut core.control
            && control
                .session
                .next_timeout_ms()
                .is_some_and(|at| at <= now_ms)
        {
            control.session.handle_timeout(now_ms);
        }
        match self
            .liveness
            .as_mut()
            .map_or(Due::Nothing, |life| life.due(now_ms))
        {
            Due::Nothing => {}
            Due::Ping => core.mux.ping(now_ms),
            Due::Dead(silent_ms) => {
                let text = format!("no byte received for {silent_ms} ms");
                return Err((CloseReason::CarrierDead, text));
            }
        }
        core.turn_control(now_ms, &mut self.wakes)
    }

    /// Ends all streams and queues the last words.
    fn begin_close(&mut self, core: &mut Core, now_ms: u64, end: CarrierEnd) {
        if let Some(control) = &mut core.control {
            control.session.bye(end.reason, &end.detail);
        }
        core.finish_all(end.reason, &mut self.wakes);
        core.say_goodbye(now_ms, end.reason, &mut self.outbox.queue);
        let deadline_ms = now_ms + CLOSE_FLUSH_MS_MAX;
        self.phase = Phase::Closing {
            end,
            deadline_ms,
            is_shut: false,
        };
    }

    fn next_timeout_ms(&self, core: &mut Core) -> u64 {
        let session = core
            .control
            .as_ref()
            .and_then(|c| c.session.next_timeout_ms());
        let closing = match self.phase {
            Phase::Closing { deadline_ms, .. } => Some(deadline_ms),
            Phase::Running | Phase::Done => None,
        };
        [
            core.mux.next_timeout_ms(),
            core.next_expiry_ms(),
            self.liveness.as_ref().map(Liveness::next_ms),
            session,
            self.outbox.stall_deadline_ms(),
            closing,
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(u64::MAX)
    }

    /// Brings the timer forward if it must be; one that fires early only costs a round.
    fn arm(&mut self, next_ms: u64) {
        if next_ms < self.timer_ms {
            self.timer_ms = next_ms;
            let at = self.shared.instant(next_ms);
            self.timer.as_mut().reset(at);
        }
    }

    fn timer_is_due(&mut self, cx: &mut Context<'_>) -> bool {
        if self.timer_ms == u64::MAX || self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        // The next visit arms it again.
        self.timer_ms = u64::MAX;
        true
    }

    /// Writes the last words, shuts the connection down and reads on to the peer's end, so that
    /// the kernel does not answer unread bytes with RST and destroy those words.
    fn closing_round(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Round {
        let Phase::Closing {
            end,
            deadline_ms,
            is_shut,
        } = &self.phase
        else {
            return Round::Idle;
        };
        let (end, deadline_ms, is_shut) = (end.clone(), *deadline_ms, *is_shut);
        let now_ms = self.shared.now_ms();
        if now_ms >= deadline_ms {
            return Round::Over(end);
        }
        self.arm(deadline_ms);
        let read = match self.poll_read(cx, buffer) {
            Poll::Ready(Ok(Some(_))) => true,
            Poll::Ready(Ok(None) | Err(_)) => return Round::Over(end),
            Poll::Pending => false,
        };
        if is_shut {
            return if read || self.timer_is_due(cx) {
                Round::Moved
            } else {
                Round::Idle
            };
        }
        let mut core = self.shared.lock();
        core.flush_control();
        self.outbox.fetch(&mut core.mux, now_ms);
        drop(core);
        let Ok(wrote) = self.outbox.poll_write(cx, &mut self.io, now_ms) else {
            return Round::Over(end);
        };
        if self.outbox.is_idle() && self.outbox.is_flushed() {
            match Pin::new(&mut self.io).poll_shutdown(cx) {
                Poll::Ready(Ok(())) => {
                    let is_shut = true;
                    self.phase = Phase::Closing {
                        end,
                        deadline_ms,
                        is_shut,
                    };
                    return Round::Moved;
                }
                Poll::Ready(Err(_)) => return Round::Over(end),
                Poll::Pending => {}
            }
        }
        if read || wrote || self.timer_is_due(cx) {
            Round::Moved
        } else {
            Round::Idle
        }
    }
}

impl<T> Driver<T> {
    /// The carrier is gone: every handle and every waiter hears of it.
    fn end(&mut self, reason: CloseReason) {
        let said_all = matches!(self.phase, Phase::Closing { is_shut: true, .. });
        if !(said_all && reason.is_clean()) {
            self.hangup.demand();
        }
        self.phase = Phase::Done;
        self.shared.lost(reason, &mut self.wakes);
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        if !matches!(self.phase, Phase::Done) {
            self.end(CloseReason::CarrierLost);
        }
    }
}

fn over(reason: CloseReason, detail: &(impl ToString + ?Sized)) -> Round {
    Round::Over(CarrierEnd {
        reason,
        detail: detail.to_string(),
    })
}

fn violated(violation: Violation) -> (CloseReason, String) {
    let reason = match violation {
        Violation::OpenRate(_)
        | Violation::ResetRate(_)
        | Violation::PingRate(_)
        | Violation::ResetBacklog(_) => CloseReason::RateViolation,
        _ => CloseReason::Protocol,
    };
    (reason, violation.to_string())
}
