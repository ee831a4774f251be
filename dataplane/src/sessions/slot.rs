//! The places of open streams and of pairs in their session's load.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use culvert_proto::close::CloseReason;

use super::Session;
use crate::ingress::Refusal;
use crate::metrics::{ClusterMetrics, Metrics};

/// One open stream in the load of its session.
pub struct StreamSlot {
    pub(super) session: Arc<Session>,
    pub(super) cluster: Arc<ClusterMetrics>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) told: bool,
}

impl StreamSlot {
    /// The session that carries the stream.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The same, to keep.
    pub fn shared(&self) -> Arc<Session> {
        self.session.clone()
    }

    /// The relay ended before its answer: what to tell the client.
    pub fn failed(&mut self, reason: CloseReason) -> Refusal {
        self.closed(reason);
        Refusal::new(reason, "")
    }

    /// Counts why the relay ended; the first word counts.
    pub fn closed(&mut self, reason: CloseReason) {
        if !std::mem::replace(&mut self.told, true) {
            self.metrics
                .relays_closed
                .with_label_values(&[reason.as_str()])
                .inc();
        }
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        if self.session.live.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.session.idle.notify_waiters();
        }
        self.cluster.streams.dec();
    }
}

/// One pair in the load of its session; it takes none of the carrier's streams.
pub struct PairSlot(Arc<Session>);

impl PairSlot {
    pub(super) fn new(session: Arc<Session>) -> Self {
        session.pairs.fetch_add(1, Ordering::Relaxed);
        Self(session)
    }
}

impl Drop for PairSlot {
    fn drop(&mut self) {
        self.0.pairs.fetch_sub(1, Ordering::Relaxed);
    }
}
