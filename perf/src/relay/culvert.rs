//! Culvert's engine behind an accept loop: no control, no tunnel, the bytes alone.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use culvert_engine::{Engine, IoEngine, Join, Limits, Settings, Share, probe};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Pairs; the process's open files end first.
const PAIRS_MAX: usize = 20_000;
/// As a data plane has by default.
const PIPES_MAX: usize = 192;
const REST_BYTES_MAX: usize = 64 << 20;

pub(super) fn relay(
    listener: &TcpListener,
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
    listener.set_nonblocking(false)?;
    loop {
        let client = rustix::net::accept_with(listener, SocketFlags::CLOEXEC);
        // A connection that cannot be joined is closed by being dropped.
        let _ = client
            .map_err(Into::into)
            .and_then(|client| join(&engine, client, to));
    }
}

/// The engine waits for the connection to stand as it waits for a full sink.
fn join(engine: &Engine, client: OwnedFd, to: SocketAddr) -> Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let service = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&service, true)?;
    match rustix::net::connect(&service, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let joined = engine.join(Join {
        client,
        service,
        from_client: Vec::new(),
        from_service: Vec::new(),
        cluster: 0,
    });
    joined
        .map(drop)
        .map_err(|reason| anyhow::anyhow!("{reason:?}"))
}
