//! The relay engine of this process.

use std::io;

use culvert_engine::{Backend, Engine, IoEngine, Limits, Settings, Share};
use culvert_proto::limits::STREAM_STALL_TIMEOUT_MS;

use crate::config::EngineConfig;
use crate::runtime;

/// Bytes that the engine may hold for sinks that took a part, over all threads.
const ENGINE_REST_BYTES_MAX: usize = 64 << 20;
/// One direction ended, and no byte moves in the other.
const HALF_CLOSED_MAX_MS: u64 = 3_600_000;
/// The kernel has no memory for a pair's bytes.
const STARVED_MAX_MS: u64 = 10_000;

/// Starts the relay engine beside `threads` session threads.
///
/// # Errors
/// When io_uring is required and refused, or no thread can be had.
pub fn start(
    asked: EngineConfig,
    io_engine: IoEngine,
    threads: usize,
) -> io::Result<(Engine, Backend)> {
    #[cfg(debug_assertions)]
    culvert_engine::drag::set(asked.drag);
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

/// A count as a gauge's value.
pub fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
