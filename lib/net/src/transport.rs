//! Byte streams that carry a session: raw after `culvert/1`, or WebSocket messages.

mod agent;
mod choice;
mod forward;
mod frame;
mod hub;
mod refusal;
mod rewind;
mod websocket;

use std::any::Any;

use tokio::io::{AsyncRead, AsyncWrite};

pub use agent::{AgentConn, UPGRADE_MAX, connect_agent};
pub(crate) use choice::Choices;
pub use forward::{FORWARD_PROTOCOL, Forwarded, connect_forward};
pub use frame::{End, FrameError, MESSAGE_BYTES_MAX, SENT_MESSAGE_BYTES_MAX};
pub use hub::{hub_transport, unwrapped, websocket_accept};
pub use refusal::{ConnectError, Refusal};
pub(crate) use rewind::rewound;
pub use websocket::WebSocket;

/// Any byte stream a carrier can run on. `Any`, so that a plain TCP connection among them can be
/// had back for splicing.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + Any {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for T {}
