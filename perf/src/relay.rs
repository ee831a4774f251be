//! One-hop relays to compare with: each is a subcommand of `culvert-perf`, so that it runs as a
//! fresh process like any rival.

mod copy;
mod culvert;
mod epoll;
mod mover;

use std::net::{SocketAddr, TcpListener};

use anyhow::Result;
use culvert_engine::IoEngine;
use rustix::net::sockopt;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// How the bytes are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mechanism {
    /// splice through a 256 KiB pipe in each direction.
    Ideal,
    /// read and write through one 64 KiB buffer.
    EpollCopy,
    /// tokio's copy_bidirectional with its default 8 KiB buffers.
    Tokio8k,
    /// The same with 64 KiB buffers.
    Tokio64k,
    /// Culvert's engine.
    Culvert,
}

/// Options of `culvert-perf relay`.
#[derive(clap::Args, Debug)]
pub struct Relay {
    /// How the bytes are moved.
    mechanism: Mechanism,
    /// Where clients connect.
    #[arg(long)]
    listen: SocketAddr,
    /// Where each of them is joined to.
    #[arg(long)]
    to: SocketAddr,
    /// Culvert's engine: io_uring or epoll.
    #[arg(long, value_enum, default_value = "auto")]
    io_engine: Io,
    /// Culvert's engine: spin for a moment after small messages.
    #[arg(long)]
    spin: bool,
}

/// What tells the engine of readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Io {
    /// io_uring where it is allowed.
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// epoll.
    Epoll,
}

/// Relays until it is ended from outside.
///
/// # Errors
/// The operating system's.
pub fn run(relay: &Relay) -> Result<()> {
    let listener = TcpListener::bind(relay.listen)?;
    rustix::net::listen(&listener, BACKLOG)?;
    // Accepted sockets inherit it.
    sockopt::set_tcp_nodelay(&listener, true)?;
    listener.set_nonblocking(true)?;
    match relay.mechanism {
        Mechanism::Ideal => epoll::relay(&listener, relay.to, true),
        Mechanism::EpollCopy => epoll::relay(&listener, relay.to, false),
        Mechanism::Tokio8k => copy::relay(listener, relay.to, 8 * 1024),
        Mechanism::Tokio64k => copy::relay(listener, relay.to, 64 * 1024),
        Mechanism::Culvert => {
            let io_engine = match relay.io_engine {
                Io::Auto => IoEngine::Auto,
                Io::IoUring => IoEngine::IoUring,
                Io::Epoll => IoEngine::Epoll,
            };
            culvert::relay(listener, relay.to, io_engine, relay.spin)
        }
    }
}
