//! Kept-alive connections to the target, last in first out.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::body::{Gate, RequestBody};

/// Idle connections kept, beside those used within [`GRACE`].
pub const IDLE_MAX: usize = 32;
/// A connection used this recently is part of the load, not idle: were only [`IDLE_MAX`] kept
/// between two requests, a load of more would dial for each.
pub const GRACE: Duration = Duration::from_secs(1);
/// How long a connection may be idle.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The idle connections of one target.
pub struct Pool {
    /// Oldest first.
    idle: Mutex<VecDeque<Idle>>,
    kept_max: usize,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    since: Instant,
}

impl Pool {
    /// An empty pool that never keeps more than `kept_max`.
    #[must_use]
    pub fn new(kept_max: usize) -> Self {
        Self {
            idle: Mutex::default(),
            kept_max,
        }
    }

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
        if idle.len() >= self.kept_max {
            idle.pop_front();
        }
        idle.push_back(Idle {
            sender,
            since: Instant::now(),
        });
    }

    /// Closes connections that were idle for too long, that the target closed, or that are too
    /// many. To be called every second.
    pub fn sweep(&self) {
        let mut idle = self.idle.lock();
        idle.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < IDLE_TIMEOUT);
        let surplus = idle.len().saturating_sub(IDLE_MAX);
        let rested = idle.partition_point(|idle| idle.since.elapsed() >= GRACE);
        idle.drain(..surplus.min(rested));
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
