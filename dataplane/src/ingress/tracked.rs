//! What a request holds while it runs, and what is counted when it ends.

use std::sync::Arc;
use std::time::Instant;

use http::Method;

use culvert_engine::legs::Leg;
use culvert_proto::answer::error_status;
use culvert_proto::close::CloseReason;

use crate::conn::{ConnState, InFlight};
use crate::metrics::ClusterMetrics;
use crate::observe::socket::Identity;
use crate::plane::Work;
use crate::table::RequestSlot;
use crate::watches::Watching;

/// A request in flight. Dropping it is its end, however that comes about.
pub struct Tracked {
    method: Method,
    began: Instant,
    status: u16,
    metrics: Arc<ClusterMetrics>,
    slot: Option<RequestSlot>,
    work: Option<Work>,
    watching: Option<Watching>,
    in_flight: InFlight,
}

impl Tracked {
    /// Begins to count a request.
    pub fn new(method: Method, metrics: Arc<ClusterMetrics>, in_flight: InFlight) -> Self {
        metrics.active.inc();
        // Of several clusters on one connection, the last one has it.
        in_flight.conn().identify(Identity {
            seen: metrics.seen.clone(),
            leg: Leg::Client,
            conn: None,
        });
        Self {
            method,
            began: Instant::now(),
            status: 0,
            metrics,
            slot: None,
            work: None,
            watching: None,
            in_flight,
        }
    }

    /// Keeps the cluster's place until the request ends.
    pub fn hold(&mut self, slot: RequestSlot) {
        self.slot = Some(slot);
    }

    /// Keeps the person's place until the request ends.
    pub fn watch(&mut self, watching: Option<Watching>) {
        self.watching = watching;
    }

    /// Keeps a drain waiting until the request ends.
    pub fn work(&mut self, work: Work) {
        self.work = Some(work);
    }

    /// The status that goes to the client.
    pub fn answered(&mut self, status: http::StatusCode) {
        self.status = status.as_u16();
    }

    /// The request is answered by ourselves.
    pub fn refused(&mut self, reason: CloseReason) {
        self.status = error_status(reason);
    }

    /// The cluster's instruments.
    pub fn metrics(&self) -> &Arc<ClusterMetrics> {
        &self.metrics
    }

    /// The client's connection.
    pub fn conn(&self) -> &Arc<ConnState> {
        self.in_flight.conn()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.metrics.active.dec();
        self.metrics.count(&self.method, self.status);
        self.metrics
            .seconds
            .observe(self.began.elapsed().as_secs_f64());
    }
}
