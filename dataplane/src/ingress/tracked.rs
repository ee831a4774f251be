//! What a request holds while it runs, and what is counted when it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::Method;

use culvert_engine::legs::Leg;
use culvert_proto::answer::error_status;
use culvert_proto::close::CloseReason;

use crate::audit::{Counts, Event};
use crate::conn::{ConnState, InFlight};
use crate::metrics::ClusterMetrics;
use crate::observe::socket::Identity;
use crate::plane::Work;
use crate::rights::Running;
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
    running: Option<Running>,
    in_flight: InFlight,
    event: Option<Event>,
}

/// Counts the bytes of a request.
#[derive(Clone)]
pub struct Meter {
    metrics: Arc<ClusterMetrics>,
    counts: Option<Arc<Counts>>,
}

impl Meter {
    /// So many went to the service.
    pub fn to_service(&self, bytes: u64) {
        self.metrics.bytes_to_service.inc_by(bytes);
        if let Some(counts) = &self.counts {
            counts.to_service.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// So many went to the client.
    pub fn to_client(&self, bytes: u64) {
        self.metrics.bytes_to_client.inc_by(bytes);
        if let Some(counts) = &self.counts {
            counts.to_client.fetch_add(bytes, Ordering::Relaxed);
        }
    }
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
            running: None,
            in_flight,
            event: None,
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

    /// Is ended with the person's right, until the request ends.
    pub fn run(&mut self, running: Option<Running>) {
        self.running = running;
    }

    /// Keeps a drain waiting until the request ends.
    pub fn work(&mut self, work: Work) {
        self.work = Some(work);
    }

    /// The status that goes to the client.
    pub fn answered(&mut self, status: http::StatusCode) {
        self.status = status.as_u16();
        if let Some(event) = &mut self.event {
            event.answered(self.status);
        }
    }

    /// It is recorded; its end will be.
    pub fn audited(&mut self, event: Option<Event>) {
        self.event = event;
        if let Some(event) = &mut self.event {
            event.answered(self.status);
        }
    }

    /// Why it ends; the first word counts.
    pub fn ends(&mut self, reason: CloseReason) {
        if let Some(event) = &mut self.event {
            event.ends(reason);
        }
    }

    /// The service switched protocols.
    pub fn opened(&mut self) {
        if let Some(event) = &mut self.event {
            event.opened();
        }
    }

    /// Counts its bytes.
    pub fn meter(&self) -> Meter {
        Meter {
            metrics: self.metrics.clone(),
            counts: self.event.as_ref().map(|event| event.counts().clone()),
        }
    }

    /// The request is answered by ourselves.
    pub fn refused(&mut self, reason: CloseReason) {
        self.status = error_status(reason);
        if let Some(event) = &mut self.event {
            event.answered(self.status);
            event.ends(reason);
        }
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
