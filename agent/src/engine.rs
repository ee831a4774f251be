//! The relay engine of this process.

use culvert_engine::{Engine, IoEngine, Limits, Settings, Share};
use culvert_proto::limits;

use crate::flow::PAIRS_MAX;
use crate::metrics::AgentMetrics;

/// Pipes: half of what an unprivileged user may have.
const PIPES_MAX: usize = 128;
/// Bytes that may be held because their sink is full.
const REST_BYTES_MAX: usize = 64 << 20;
/// The kernel stays short of memory, ms.
const STARVED_MAX_MS: u64 = 10_000;

/// What an operator says about the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// What its threads are told of readiness by.
    pub io: IoEngine,
    /// Threads.
    pub threads: usize,
    /// They may poll on after a small message, where a CPU is left for it.
    pub spin: bool,
}

/// Starts it beside `others` threads that want a CPU too.
///
/// # Errors
/// The operating system's; io_uring is required and refused.
pub fn start_engine(
    config: EngineConfig,
    others: usize,
    metrics: &AgentMetrics,
) -> std::io::Result<Engine> {
    let backend = culvert_engine::probe(config.io)?;
    metrics.runs_on(backend);
    let threads = config.threads.max(1);
    // On a CPU that is shared the spin takes the peer's time (performance.md 2.6).
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let spins = config.spin && threads + others <= cpus;
    tracing::info!(
        backend = backend.name(),
        reason = backend.reason,
        threads,
        spins,
        "relay engine"
    );
    Engine::start(&Settings {
        threads,
        backend,
        pairs_max: PAIRS_MAX,
        cluster_pairs_max: PAIRS_MAX,
        share: Share {
            pipes_max: PIPES_MAX.div_ceil(threads),
            rest_bytes_max: REST_BYTES_MAX / threads,
            spins,
            limits: Limits {
                idle_max_ms: 0,
                half_closed_max_ms: limits::STREAM_STALL_TIMEOUT_MS,
                stalled_max_ms: limits::STREAM_STALL_TIMEOUT_MS,
                starved_max_ms: STARVED_MAX_MS,
            },
        },
    })
}
