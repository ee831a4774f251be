//! Opening a stream: the header the hub sends first, the answer of a dial (P5).

mod dial;
mod header;

use alloc::string::String;
use alloc::sync::Arc;

use crate::channel::ChannelOffer;
use crate::close::CloseReason;
use crate::id::RequestId;

pub use dial::DialAnswerDecoder;
pub use header::StreamHeaderDecoder;

/// Bytes of a W3C traceparent.
pub const TRACEPARENT_BYTES: usize = 55;
/// Client address and principal are cut to this many bytes; they only serve logs.
pub const LOG_FIELD_BYTES_MAX: usize = 255;

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StreamKind {
    /// The session's control messages; stream 1 only.
    Control = 0,
    /// One HTTP/1.1 request and its response.
    Http = 1,
    /// Raw bytes to a dialled target.
    Tcp = 2,
}

/// First bytes hub to agent on every stream of culvert/1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// What follows.
    pub kind: StreamKind,
    /// Payload follows at once, up to 16 KiB before the answer.
    pub payload_follows: bool,
    /// Name of the granted target; `None` = the agent's only one.
    pub target: Option<Arc<str>>,
    /// The request this stream serves.
    pub request_id: Option<RequestId>,
    /// W3C trace context, exactly 55 ASCII characters.
    pub traceparent: Option<Arc<str>>,
    /// How long the hub waits for the target, ms.
    pub dial_deadline_ms: Option<u32>,
    /// The client's address, for the agent's log.
    pub client_addr: Option<Arc<str>>,
    /// Who asks, for the agent's log; never an authorisation.
    pub principal: Option<Arc<str>>,
    /// The agent may answer on a data channel in place of this stream.
    pub offer: Option<ChannelOffer>,
    /// With an offer: this many bytes of payload follow on the stream; what the client sends after
    /// them comes where the answer came from.
    pub early_bytes: Option<u16>,
}

/// First bytes agent to hub on a [`StreamKind::Tcp`] stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialAnswer {
    /// How the dial ended.
    pub code: DialCode,
    /// Text for logs; cut to 512 bytes when sent.
    pub reason: String,
}

/// How a dial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DialCode {
    /// Raw bytes follow.
    Connected = 0,
    /// The agent's own list does not hold the target.
    NotAllowed = 1,
    /// The target refused.
    Refused = 2,
    /// The target did not answer in time.
    Timeout = 3,
    /// No route.
    Unreachable = 4,
    /// The name did not resolve.
    Name = 5,
    /// TLS towards the target failed.
    Tls = 6,
    /// The agent is at a limit.
    Overload = 7,
    /// The agent is about to stop.
    Draining = 8,
    /// No target of this name.
    UnknownTarget = 9,
}

/// A header that cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Longer than the wire allows.
    #[error("{field} is longer than {max} bytes")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// Its limit, in bytes.
        max: usize,
    },
    /// Not a W3C traceparent.
    #[error("traceparent must be exactly {TRACEPARENT_BYTES} ASCII characters")]
    Traceparent,
}

/// A header or dial answer that breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The block is over its limit.
    #[error("block of {announced} bytes; at most {max} are allowed")]
    TooLong {
        /// Bytes announced.
        announced: u16,
        /// Bytes allowed.
        max: u16,
    },
    /// No such stream kind.
    #[error("unknown stream kind {0}")]
    Kind(u8),
    /// A reserved flag or byte is set.
    #[error("reserved bits {0:#04x} are set")]
    Reserved(u8),
    /// A field ends outside the block.
    #[error("a field ends outside the block")]
    Short,
    /// A known field has an impossible value or comes twice.
    #[error("field {field} has an impossible value or comes twice")]
    Field {
        /// Its type number.
        field: u8,
    },
    /// No such dial code.
    #[error("unknown dial code {0}")]
    DialCode(u8),
}

// === impl DialCode ===

impl DialCode {
    const ALL: [DialCode; 10] = [
        DialCode::Connected,
        DialCode::NotAllowed,
        DialCode::Refused,
        DialCode::Timeout,
        DialCode::Unreachable,
        DialCode::Name,
        DialCode::Tls,
        DialCode::Overload,
        DialCode::Draining,
        DialCode::UnknownTarget,
    ];

    /// The code of a wire byte.
    pub fn from_u8(code: u8) -> Option<DialCode> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// What it means for the request; `None` for [`DialCode::Connected`].
    pub fn close_reason(self) -> Option<CloseReason> {
        Some(match self {
            DialCode::Connected => return None,
            DialCode::NotAllowed | DialCode::UnknownTarget => CloseReason::TargetNotAllowed,
            DialCode::Refused => CloseReason::DialRefused,
            DialCode::Timeout => CloseReason::DialTimeout,
            DialCode::Unreachable => CloseReason::DialUnreachable,
            DialCode::Name => CloseReason::DialName,
            DialCode::Tls => CloseReason::TargetTls,
            DialCode::Overload => CloseReason::AgentOverload,
            DialCode::Draining => CloseReason::AgentDraining,
        })
    }
}
