//! The relay engine of this process, and what it counts.

use std::io;
use std::sync::atomic::Ordering;

use culvert_engine::{Backend, Engine, IoEngine, Limits, Settings, Share};
use culvert_proto::close::CloseReason;
use culvert_proto::limits::STREAM_STALL_TIMEOUT_MS;
use culvert_telemetry::metrics::{IntCounter, IntCounterVec, IntGauge, Metrics as Registry};

use crate::config::EngineConfig;
use crate::runtime;

/// Bytes that the engine may hold for sinks that took a part, over all threads.
const ENGINE_REST_BYTES_MAX: usize = 64 << 20;
/// One direction ended, and no byte moves in the other.
const HALF_CLOSED_MAX_MS: u64 = 3_600_000;
/// The kernel has no memory for a pair's bytes.
const STARVED_MAX_MS: u64 = 10_000;

/// The relay engine.
pub struct EngineMetrics {
    pairs: IntGauge,
    pipes: IntGauge,
    pipes_exhausted: IntCounter,
    rest_bytes: IntGauge,
    spun: IntCounter,
    bytes: IntCounter,
    spliced: IntCounter,
    refused: IntCounterVec,
}

/// Starts the relay engine beside `threads` session threads.
///
/// # Errors
/// When io_uring is required and refused, or no thread can be had.
pub fn start(
    asked: EngineConfig,
    io_engine: IoEngine,
    threads: usize,
) -> io::Result<(Engine, Backend)> {
    let backend = culvert_engine::probe(io_engine)?;
    let threads = asked.threads.unwrap_or(threads);
    let engine = Engine::start(&Settings {
        threads,
        backend,
        pairs_max: asked.pairs_max,
        cluster_pairs_max: asked.cluster_pairs_max,
        share: Share {
            pipes_max: asked.pipes.div_ceil(threads),
            rest_bytes_max: ENGINE_REST_BYTES_MAX / threads,
            spins: asked.spin && runtime::cpus_allowed() > 1,
            limits: Limits {
                idle_max_ms: 0,
                half_closed_max_ms: HALF_CLOSED_MAX_MS,
                stalled_max_ms: STREAM_STALL_TIMEOUT_MS,
                starved_max_ms: STARVED_MAX_MS,
            },
        },
    })?;
    tracing::info!(
        threads,
        backend = backend.name(),
        reason = backend.reason,
        pipes = asked.pipes,
        "relay engine starts"
    );
    Ok((engine, backend))
}

impl EngineMetrics {
    /// Registers them.
    pub fn new(r: &Registry) -> Self {
        Self {
            pairs: r.gauge(
                "culvert_engine_pairs",
                "Pairs of sockets that the engine relays.",
            ),
            pipes: r.gauge(
                "culvert_engine_pipes",
                "Pipes lent to directions that splice.",
            ),
            pipes_exhausted: r.counter(
                "culvert_engine_pipes_exhausted_total",
                "Times a direction copied for want of a pipe.",
            ),
            rest_bytes: r.gauge(
                "culvert_engine_rest_bytes",
                "Bytes read and not sent yet, kept for sinks that took a part.",
            ),
            spun: r.counter(
                "culvert_engine_spun_seconds_total",
                "Seconds of CPU spent waiting for the next small message.",
            ),
            bytes: r.counter(
                "culvert_engine_bytes_total",
                "Bytes delivered by the engine, pairs that live included.",
            ),
            spliced: r.counter(
                "culvert_engine_spliced_bytes_total",
                "Of these, bytes that no copy touched.",
            ),
            refused: r.counter_vec(
                "culvert_engine_refused_total",
                "Pairs refused at a limit, by close reason.",
                &["reason"],
            ),
        }
    }

    /// A limit was reached.
    pub fn refused(&self, reason: CloseReason) {
        self.refused.with_label_values(&[reason.as_str()]).inc();
    }

    /// Bytes that were delivered since the last call, and those of them spliced.
    pub fn moved(&self, bytes: u64, spliced: u64) {
        self.bytes.inc_by(bytes);
        self.spliced.inc_by(spliced);
    }

    /// Fills what is only known at scrape time.
    pub fn refresh(&self, engine: &Engine) {
        let (mut pairs, mut pipes, mut rest) = (0, 0, 0);
        let (mut exhausted, mut spun_us) = (0, 0);
        for thread in engine.gauges() {
            pairs += thread.pairs.load(Ordering::Relaxed);
            pipes += thread.pipes.load(Ordering::Relaxed);
            rest += thread.rest_bytes.load(Ordering::Relaxed);
            exhausted += thread.pipes_exhausted.load(Ordering::Relaxed);
            spun_us += thread.spun_us.load(Ordering::Relaxed);
        }
        self.pairs.set(gauge(pairs as u64));
        self.pipes.set(gauge(pipes as u64));
        self.rest_bytes.set(gauge(rest as u64));
        raise(&self.pipes_exhausted, exhausted);
        raise(&self.spun, spun_us / 1_000_000);
    }
}

impl EngineMetrics {
    /// Counts the bytes of the engine itself, where no flow does.
    #[cfg(feature = "relay")]
    pub fn refresh_bytes(&self, engine: &Engine) {
        let sum = |of: fn(&culvert_engine::Gauges) -> &std::sync::atomic::AtomicU64| {
            engine
                .gauges()
                .map(|thread| of(thread).load(Ordering::Relaxed))
                .sum()
        };
        raise(&self.bytes, sum(|thread| &thread.bytes));
        raise(&self.spliced, sum(|thread| &thread.spliced_bytes));
    }
}

fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

/// A count as a gauge's value.
pub fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
