//! What the engine's threads tell, as instruments of the process that runs them.

use std::sync::atomic::{AtomicU64, Ordering};

use culvert_proto::close::CloseReason;
use culvert_telemetry::metrics::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Metrics};

use crate::inbox::Gauges;

/// The engine's instruments.
pub struct EngineMetrics {
    pairs: IntGauge,
    pipes: IntGaugeVec,
    pipes_exhausted: Followed,
    rest_bytes: IntGauge,
    spun: Followed,
    bytes: Followed,
    spliced_bytes: Followed,
    refused: IntCounterVec,
    panics: Followed,
}

/// A counter that follows one that threads keep.
struct Followed {
    counter: IntCounter,
    seen: AtomicU64,
}

impl EngineMetrics {
    /// Registers them; `panics` is the process's counter of panics, by task.
    #[must_use]
    pub fn new(m: &Metrics, panics: &IntCounterVec) -> Self {
        Self {
            pairs: m.gauge(
                "culvert_engine_pairs",
                "Pairs of sockets that the engine relays.",
            ),
            pipes: m.gauge_vec(
                "culvert_pipes",
                "Pipes of the engine: borrowed by directions that splice.",
                &["state"],
            ),
            pipes_exhausted: Followed::new(m.counter(
                "culvert_pipe_pool_exhausted_total",
                "Times a direction copied for want of a pipe.",
            )),
            rest_bytes: m.gauge(
                "culvert_engine_rest_bytes",
                "Bytes read and not sent yet, kept for sinks that took a part.",
            ),
            spun: Followed::new(m.counter(
                "culvert_engine_spun_seconds_total",
                "Seconds of CPU spent waiting for the next small message.",
            )),
            bytes: Followed::new(m.counter(
                "culvert_engine_bytes_total",
                "Bytes delivered by the engine, pairs that live included.",
            )),
            spliced_bytes: Followed::new(m.counter(
                "culvert_engine_spliced_bytes_total",
                "Of these, bytes that no copy touched.",
            )),
            refused: m.counter_vec(
                "culvert_engine_refused_total",
                "Pairs refused at a limit, by close reason.",
                &["reason"],
            ),
            panics: Followed::new(panics.with_label_values(&["engine"])),
        }
    }

    /// A limit was reached.
    pub fn refused(&self, reason: CloseReason) {
        self.refused.with_label_values(&[reason.as_str()]).inc();
    }

    /// Takes over what the threads count.
    pub fn follow<'a>(&self, threads: impl Iterator<Item = &'a Gauges>) {
        let (mut pairs, mut pipes, mut rest) = (0, 0, 0);
        let (mut exhausted, mut spun_us, mut panics) = (0, 0, 0);
        let (mut bytes, mut spliced) = (0, 0);
        for thread in threads {
            pairs += thread.pairs.load(Ordering::Relaxed);
            pipes += thread.pipes.load(Ordering::Relaxed);
            rest += thread.rest_bytes.load(Ordering::Relaxed);
            exhausted += thread.pipes_exhausted.load(Ordering::Relaxed);
            spun_us += thread.spun_us.load(Ordering::Relaxed);
            bytes += thread.bytes.load(Ordering::Relaxed);
            spliced += thread.spliced_bytes.load(Ordering::Relaxed);
            panics += thread.panics.load(Ordering::Relaxed);
        }
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.pairs.set(gauge(pairs));
        self.pipes
            .with_label_values(&["borrowed"])
            .set(gauge(pipes));
        self.rest_bytes.set(gauge(rest));
        self.pipes_exhausted.is_now(exhausted);
        self.spun.is_now(spun_us / 1_000_000);
        self.bytes.is_now(bytes);
        self.spliced_bytes.is_now(spliced);
        self.panics.is_now(panics);
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
