//! Byte streams that carry a session: raw after `culvert/1`, or WebSocket messages.

mod frame;
mod rewind;
mod websocket;

use tokio::io::{AsyncRead, AsyncWrite};

pub use frame::{End, FrameError, MESSAGE_BYTES_MAX, SENT_MESSAGE_BYTES_MAX};
pub(crate) use rewind::rewound;
pub use websocket::WebSocket;

/// Any byte stream a carrier can run on.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for T {}

/// How the bytes of a session travel after the 101.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As they are (`Upgrade: culvert/1`).
    Native,
    /// In BINARY messages (`Upgrade: websocket`).
    WebSocket,
}
