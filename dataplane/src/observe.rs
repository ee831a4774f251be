//! What is known of the connections of this data plane: sockets are tagged for
//! the observer in the kernel, counted by leg, and told of when they end.
//!
//! `claims` gives clusters their places, `socket` is one accepted connection, `pair` the two of the engine, `families`
//! what a scrape reads of the kernel, `launch` the start of the observer, `ends` the thread that hears of closed
//! connections, `flowlog` the line for each, `probe` what the host permits. Nothing here fails a connection.

mod claims;
pub mod ends;
mod families;
pub mod flowlog;
pub mod launch;
pub mod pair;
pub mod probe;
pub mod socket;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use culvert_engine::legs::{Elsewhere, LegMetrics};
use culvert_observe::{ClusterIndex, ConnId, Observer, Tier};
use culvert_telemetry::metrics::{ClusterLabels, HistogramVec, Metrics as Registry};

use claims::Claims;
pub use claims::Seen;
pub use families::register;
pub use launch::start;
pub use socket::Watched;

/// One of so many accepts tells how long it waited: a lookup costs as much as a
/// tag.
const ACCEPTS_LOOKED_AT: u64 = 16;

/// What all threads use.
pub struct Sight {
    /// The observer in the kernel, or none.
    pub observer: Observer,
    /// Connections by leg.
    pub legs: Arc<LegMetrics>,
    /// Hears of ends.
    pub ends: ends::Mailbox,
    claims: Claims,
    sequence: AtomicU64,
    accepts: AtomicU64,
    accept_queue: HistogramVec,
    pub(in crate::observe) first_byte: HistogramVec,
    pub(in crate::observe) connect: HistogramVec,
}

impl Sight {
    /// Registers everything that `observer` and the sockets tell.
    pub fn new(r: &Registry, observer: Observer, labels: &Arc<ClusterLabels>) -> Arc<Self> {
        let tier = observer.tier();
        let elsewhere = Elsewhere {
            tcp: tier >= Tier::Sockops,
            bytes: tier >= Tier::Skb,
        };
        register(r, &observer, labels);
        let sight = Self {
            legs: LegMetrics::new(r, elsewhere),
            ends: ends::Mailbox::new(r),
            claims: Claims::default(),
            sequence: AtomicU64::new(1),
            accepts: AtomicU64::new(0),
            accept_queue: r.times_vec(
                "culvert_accept_queue_duration_seconds",
                "From a handshake's end to its accept, of one connection in 16.",
                &["leg"],
            ),
            first_byte: r.times_vec(
                "culvert_first_byte_duration_seconds",
                "From a client's first byte to the first one back; where no observer counts bytes, from its connection.",
                &["cluster"],
            ),
            connect: r.times_vec(
                "culvert_tcp_connect_duration_seconds",
                "From SYN to the connection, of those this process opened.",
                &["cluster", "leg"],
            ),
            observer,
        };
        let nobody = sight.legs.nobody().histogram.clone();
        let _ = sight.accept_queue.with_label_values(&["client"]);
        let _ = sight.first_byte.with_label_values(&[&*nobody]);
        let _ = sight.connect.with_label_values(&[&*nobody, "peer"]);
        Arc::new(sight)
    }

    /// A cluster by its name, which has a place as long as the answer is held.
    pub fn cluster(&self, labels: &ClusterLabels, cluster: &str) -> Seen {
        self.claims.claim(cluster, labels, &self.observer)
    }

    /// Gives back the places of clusters that nobody counts for any more.
    pub fn sweep(&self, labels: &ClusterLabels, registry: &Registry) {
        self.claims.sweep(labels, &self.observer, registry);
    }

    /// Whoever it is.
    pub fn nobody(&self) -> Seen {
        Seen::fixed(self.legs.nobody().clone(), ClusterIndex::UNROUTED)
    }

    /// A number for a connection, or for the two of a relay.
    pub fn number(&self) -> ConnId {
        ConnId::of_sequence(self.sequence.fetch_add(1, Ordering::Relaxed))
    }

    /// The first byte came back so long after the client came.
    pub fn first_byte(&self, seen: &Seen, took: Duration) {
        let row = self.first_byte.with_label_values(&[&*seen.named.histogram]);
        row.observe(took.as_secs_f64());
    }

    fn looks_at_accept(&self) -> bool {
        self.observer.tier() >= Tier::Sockops
            && self
                .accepts
                .fetch_add(1, Ordering::Relaxed)
                .is_multiple_of(ACCEPTS_LOOKED_AT)
    }
}
