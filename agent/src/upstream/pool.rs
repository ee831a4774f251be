//! Kept-alive connections to the target, last in first out.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::body::{Gate, RequestBody};

/// Idle connections kept.
pub const IDLE_MAX: usize = 32;
/// How long a connection may be idle.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The idle connections of one target.
#[derive(Default)]
pub struct Pool {
    idle: Mutex<VecDeque<Idle>>,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    since: Instant,
}

impl Pool {
    /// The connection used last that can take a request now, and how long it was idle.
    pub(super) fn take(&self) -> Option<(SendRequest<RequestBody>, Duration)> {
        let mut idle = self.idle.lock();
        // A connection that is not ready just now is still writing: leave it.
        for at in (0..idle.len()).rev() {
            if idle[at].since.elapsed() >= IDLE_TIMEOUT {
                idle.drain(..=at);
                return None;
            }
            if idle[at].sender.is_ready() {
                let idle = idle.remove(at)?;
                return Some((idle.sender, idle.since.elapsed()));
            }
            if idle[at].sender.is_closed() {
                idle.remove(at);
            }
        }
        None
    }

    fn put(&self, sender: SendRequest<RequestBody>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() == IDLE_MAX {
            idle.pop_front();
        }
        idle.push_back(Idle {
            sender,
            since: Instant::now(),
        });
    }

    /// Closes connections that were idle for too long or that the target closed.
    pub fn sweep(&self) {
        self.idle
            .lock()
            .retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < IDLE_TIMEOUT);
    }

    /// Idle connections at this moment.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle.lock().len()
    }
}

/// A connection in use. Dropped: it is closed.
pub struct Lease {
    sender: Option<SendRequest<RequestBody>>,
    pool: Weak<Pool>,
    gate: Option<Arc<Gate>>,
}

impl Lease {
    pub(super) fn new(
        sender: SendRequest<RequestBody>,
        pool: &Arc<Pool>,
        gate: Option<Arc<Gate>>,
    ) -> Self {
        Self {
            sender: Some(sender),
            pool: Arc::downgrade(pool),
            gate,
        }
    }

    /// The answer was read to its end: another request may follow, unless the
    /// body of this one was never asked for.
    pub(super) fn give_back(mut self) {
        let held = self.gate.as_ref().is_some_and(|gate| !gate.is_open());
        if let (Some(sender), Some(pool), false) = (self.sender.take(), self.pool.upgrade(), held) {
            pool.put(sender);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(gate) = &self.gate {
            gate.shut();
        }
    }
}
