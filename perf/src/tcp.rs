//! The TCP generator: bulk, messages, short connections, bursts and idle pairs, with the service
//! they talk to, as one epoll thread.
//!
//! Both ends of every relayed connection live in it. Bytes and answers are counted where they
//! arrive; a message counts when all of it came back unchanged. A client's first byte (behind an
//! optional preface that the service skips) says what it wants: [`ECHO`], [`SEND`], [`DISCARD`]
//! or [`EXCHANGE`].

mod books;
mod hello;
pub mod integrity;
mod rig;
mod serve;

use std::net::SocketAddr;
use std::time::Duration;

use crate::load::Arrivals;

pub use hello::client_hello;
pub use rig::Rig;

/// Send back what comes; the byte itself too.
pub const ECHO: u8 = b'e';
/// Send the pattern without end.
pub const SEND: u8 = b's';
/// Discard what comes.
pub const DISCARD: u8 = b'd';
/// Both at once.
pub const EXCHANGE: u8 = b'x';
/// Largest message.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// Which way bulk flows, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Client to service.
    Up,
    /// Service to client.
    Down,
    /// Both ways at once.
    Both,
}

/// What the connections do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// As many bytes as go through.
    Bulk(Way),
    /// Messages that are sent back, on connections that stay.
    Messages {
        /// Bytes of a message, 9 to [`MESSAGE_BYTES_MAX`].
        bytes: usize,
        /// When they are due.
        arrivals: Arrivals,
    },
    /// Connect, one message, its echo, close; then the next connection.
    Short {
        /// Bytes of the message.
        bytes: usize,
    },
    /// All connections at once, one message each; latency is from the start to the first byte.
    Burst {
        /// Bytes of the message.
        bytes: usize,
    },
}

/// One measurement.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whom to connect to.
    pub entry: SocketAddr,
    /// Sent first on each connection; the service skips as many bytes.
    pub preface: Vec<u8>,
    /// Connections, at once.
    pub connections: usize,
    /// What they do.
    pub work: Work,
    /// Load before the window.
    pub warm_up: Duration,
    /// What is measured; a burst may end earlier.
    pub window: Duration,
    /// Connections that take bulk down beside the work.
    pub bulk_beside: usize,
    /// Connections that ask for bulk down and never read it.
    pub stalled_beside: usize,
}
