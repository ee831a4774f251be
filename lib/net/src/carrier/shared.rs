//! What driver and handles hold together, and how they wake each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use culvert_mux::{Mux, StreamId};
use culvert_proto::close::CloseReason;
use culvert_proto::open::StreamHeader;
use culvert_proto::session::{Session, VerbError};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::control::SessionEvent;
use super::core::Core;
use super::error::OpenError;
use super::{End, Stream, Style};

/// A stream that the hub opened.
pub struct Incoming {
    /// Its header; `None` on a Radar carrier.
    pub header: Option<StreamHeader>,
    /// The stream, positioned behind the header.
    pub stream: Stream,
}

/// The part that everyone holds.
pub(super) struct Shared {
    core: Mutex<Core>,
    started: Instant,
    accepted: Notify,
    told: Notify,
    over: Notify,
    /// How long writers of streams waited for room, nanoseconds.
    stalled_ns: AtomicU64,
}

/// Wakers to call once the lock is free, and what else changed.
#[derive(Default)]
pub(super) struct Wakes {
    pub(super) wakers: Vec<Waker>,
    pub(super) accepted: bool,
    pub(super) told: bool,
}

impl Shared {
    pub(super) fn new(end: End, style: Style, mux: Mux) -> Shared {
        Shared {
            core: Mutex::new(Core::new(end, style, mux)),
            started: Instant::now(),
            accepted: Notify::new(),
            told: Notify::new(),
            over: Notify::new(),
            stalled_ns: AtomicU64::new(0),
        }
    }

    /// A writer waited so long.
    pub(super) fn stalled(&self, waited: Duration) {
        let ns = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.stalled_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// How long writers waited so far.
    pub(super) fn stall(&self) -> Duration {
        Duration::from_nanos(self.stalled_ns.load(Ordering::Relaxed))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    /// Milliseconds since the carrier was made.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn instant(&self, at_ms: u64) -> Instant {
        self.started + Duration::from_millis(at_ms)
    }

    /// Calls what was collected under the lock.
    pub(super) fn wake(&self, wakes: &mut Wakes) {
        for waker in wakes.wakers.drain(..) {
            waker.wake();
        }
        if std::mem::take(&mut wakes.accepted) {
            self.accepted.notify_one();
        }
        if std::mem::take(&mut wakes.told) {
            self.told.notify_one();
        }
    }

    pub(super) fn open(
        shared: &Arc<Shared>,
        header: Option<&StreamHeader>,
    ) -> Result<Stream, OpenError> {
        let encoded = match header {
            Some(header) => header
                .encode()
                .map_err(|e| OpenError::new(CloseReason::Internal, &e))?,
            None => Bytes::new(),
        };
        let now_ms = shared.now_ms();
        let mut core = shared.lock();
        let id = core.open(now_ms, encoded)?;
        let driver = core.unpark();
        drop(core);
        wake(driver);
        Ok(Stream::new(shared.clone(), id, Bytes::new()))
    }

    pub(super) async fn accept(shared: &Arc<Shared>) -> Option<Incoming> {
        loop {
            let waiting = shared.accepted.notified();
            {
                let mut core = shared.lock();
                if let Some((header, id, prefix)) = core.accepting.pop_front() {
                    let more = !core.accepting.is_empty();
                    drop(core);
                    if more {
                        shared.accepted.notify_one();
                    }
                    return Some(Incoming {
                        header,
                        stream: Stream::new(shared.clone(), id, prefix),
                    });
                }
                if core.ended.is_some() {
                    // For the next one who waits.
                    shared.accepted.notify_one();
                    return None;
                }
            }
            waiting.await;
        }
    }

    pub(super) async fn event(&self) -> Option<SessionEvent> {
        loop {
            let waiting = self.told.notified();
            {
                let mut core = self.lock();
                if let Some(event) = core.events.pop_front() {
                    let more = !core.events.is_empty();
                    // The control stream may have been waiting for room.
                    let was_full = core.events.len() + 1 >= super::EVENTS_MAX;
                    let driver = if was_full { core.force_unpark() } else { None };
                    drop(core);
                    wake(driver);
                    if more {
                        self.told.notify_one();
                    }
                    return Some(event);
                }
                if core.ended.is_some() {
                    self.told.notify_one();
                    return None;
                }
            }
            waiting.await;
        }
    }

    pub(super) async fn closed(&self) -> CloseReason {
        loop {
            let waiting = self.over.notified();
            tokio::pin!(waiting);
            waiting.as_mut().enable();
            if let Some(reason) = self.lock().ended {
                return reason;
            }
            waiting.await;
        }
    }

    /// Waits until `done` is true of the core, or the session is over. For one task.
    pub(super) async fn leaving(&self, done: impl Fn(&Core) -> bool) {
        std::future::poll_fn(|cx| {
            let mut core = self.lock();
            if done(&core) || core.ended.is_some() {
                return Poll::Ready(());
            }
            core.leaver = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub(super) fn close(&self, reason: CloseReason) {
        let mut wakes = Wakes::default();
        let mut core = self.lock();
        core.finish_all(reason, &mut wakes);
        let driver = core.force_unpark();
        drop(core);
        wake(driver);
        self.wake(&mut wakes);
        self.over.notify_waiters();
    }

    /// The connection is gone.
    pub(super) fn lost(&self, reason: CloseReason, wakes: &mut Wakes) {
        let mut core = self.lock();
        core.finish_all(reason, wakes);
        core.mux.carrier_lost();
        // Nobody wakes a driver that is no more.
        core.driver = None;
        core.parked = false;
        drop(core);
        self.wake(wakes);
        self.over.notify_waiters();
    }

    pub(super) fn cut(&self, id: StreamId, reason: CloseReason) {
        let mut wakes = Wakes::default();
        let mut core = self.lock();
        core.cut(id, reason, &mut wakes);
        let driver = core.unpark();
        drop(core);
        wake(driver);
        self.wake(&mut wakes);
    }

    /// Says GoAway 0, with a ping behind it.
    pub(super) fn retire(&self) {
        let mut core = self.lock();
        core.set_draining();
        core.mux.leave();
        let driver = core.unpark();
        drop(core);
        wake(driver);
    }

    /// Runs a verb of the session and lets the driver send what came of it.
    pub(super) fn verb(
        &self,
        verb: impl FnOnce(&mut Session) -> Result<(), VerbError>,
    ) -> Result<(), VerbError> {
        let mut core = self.lock();
        let control = core.control.as_mut().ok_or(VerbError::NotNegotiated)?;
        verb(&mut control.session)?;
        let driver = core.force_unpark();
        drop(core);
        wake(driver);
        Ok(())
    }
}

pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
