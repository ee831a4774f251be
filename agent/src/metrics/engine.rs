//! What the relay engine tells, with the names that it has on the hub.

use std::sync::atomic::{AtomicU64, Ordering};

use culvert_engine::{Backend, Gauges};
use culvert_telemetry::metrics::{IntCounter, IntGauge, IntGaugeVec, Metrics};

/// The engine's instruments.
pub struct EngineMetrics {
    backend: IntGaugeVec,
    pairs: IntGauge,
    pipes: IntGaugeVec,
    exhausted: Followed,
    spun_us: Followed,
    bytes: IntCounter,
    spliced_bytes: IntCounter,
}

/// A counter that follows one of the engine's.
struct Followed {
    counter: IntCounter,
    seen: AtomicU64,
}

impl EngineMetrics {
    pub(super) fn new(m: &Metrics) -> Self {
        Self {
            backend: m.gauge_vec(
                "culvert_io_backend",
                "1 for what the engine threads are told of readiness by, and why.",
                &["backend", "reason"],
            ),
            pairs: m.gauge("culvert_engine_pairs", "Pairs in the engine now."),
            pipes: m.gauge_vec("culvert_pipes", "Pipes of the engine.", &["state"]),
            exhausted: Followed::new(m.counter(
                "culvert_pipe_pool_exhausted_total",
                "Times a direction copied for want of a pipe.",
            )),
            spun_us: Followed::new(m.counter(
                "culvert_engine_spun_microseconds_total",
                "Time that engine threads polled on after a small message.",
            )),
            bytes: m.counter("culvert_engine_bytes_total", "Bytes of pairs that ended."),
            spliced_bytes: m.counter(
                "culvert_engine_spliced_bytes_total",
                "Of these, bytes that no copy touched.",
            ),
        }
    }

    /// The engine runs on `backend`.
    pub fn runs_on(&self, backend: Backend) {
        self.backend
            .with_label_values(&[backend.name(), backend.reason])
            .set(1);
    }

    /// A pair ended.
    pub fn moved(&self, bytes: u64, spliced: u64) {
        self.bytes.inc_by(bytes);
        self.spliced_bytes.inc_by(spliced);
    }

    /// Takes over what the engine's threads count.
    pub fn follow<'a>(&self, threads: impl Iterator<Item = &'a Gauges>) {
        let (mut pairs, mut pipes, mut exhausted, mut spun_us) = (0, 0, 0, 0);
        for thread in threads {
            pairs += thread.pairs.load(Ordering::Relaxed);
            pipes += thread.pipes.load(Ordering::Relaxed);
            exhausted += thread.pipes_exhausted.load(Ordering::Relaxed);
            spun_us += thread.spun_us.load(Ordering::Relaxed);
        }
        self.pairs.set(i64::try_from(pairs).unwrap_or(i64::MAX));
        let borrowed = self.pipes.with_label_values(&["borrowed"]);
        borrowed.set(i64::try_from(pipes).unwrap_or(i64::MAX));
        self.exhausted.is_now(exhausted);
        self.spun_us.is_now(spun_us);
    }
}

impl Followed {
    fn new(counter: IntCounter) -> Self {
        Self {
            counter,
            seen: AtomicU64::new(0),
        }
    }

    fn is_now(&self, total: u64) {
        let before = self.seen.swap(total, Ordering::Relaxed);
        self.counter.inc_by(total.saturating_sub(before));
    }
}
