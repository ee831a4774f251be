//! Culvert's engine, which accepts and connects by itself: no control, no tunnel, the bytes alone.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};
use culvert_engine::{Engine, Hop, IoEngine, Limits, Settings, Share, probe};

/// Pairs; the process's open files end first.
const PAIRS_MAX: usize = 20_000;
/// As a data plane has by default.
const PIPES_MAX: usize = 192;
const REST_BYTES_MAX: usize = 64 << 20;

pub(super) fn relay(
    listener: TcpListener,
    to: SocketAddr,
    io_engine: IoEngine,
    spins: bool,
) -> Result<()> {
    let engine = Engine::start(&Settings {
        threads: 1,
        backend: probe(io_engine).context("choosing io_uring or epoll")?,
        pairs_max: PAIRS_MAX,
        cluster_pairs_max: PAIRS_MAX,
        share: Share {
            pipes_max: PIPES_MAX,
            rest_bytes_max: REST_BYTES_MAX,
            spins,
            limits: Limits {
                idle_max_ms: 0,
                half_closed_max_ms: 0,
                stalled_max_ms: 0,
                starved_max_ms: 10_000,
            },
        },
    })?;
    engine.hop(Hop {
        listener: listener.into(),
        target: to,
        cluster: 0,
    })?;
    loop {
        std::thread::park();
    }
}
