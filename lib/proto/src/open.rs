//! Opening a stream: the header the hub sends first, the answer of a dial (P5).

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;

use crate::close::CloseReason;
use crate::id::RequestId;
use crate::limits::{DIAL_REASON_BYTES_MAX, STREAM_HEADER_BYTES_MAX, TARGET_NAME_BYTES_MAX};
use crate::text;
use crate::wire::{self, BlockDecoder, Reader};

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

/// Collects a stream header from pieces of any size.
#[derive(Default)]
pub struct StreamHeaderDecoder(BlockDecoder);

/// Collects a dial answer from pieces of any size.
#[derive(Default)]
pub struct DialAnswerDecoder(BlockDecoder);

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

const FLAG_PAYLOAD: u8 = 1;

mod field {
    pub(super) const TARGET: u8 = 1;
    pub(super) const REQUEST_ID: u8 = 2;
    pub(super) const TRACEPARENT: u8 = 3;
    pub(super) const DIAL_DEADLINE: u8 = 4;
    pub(super) const CLIENT_ADDR: u8 = 5;
    pub(super) const PRINCIPAL: u8 = 6;
}

// === impl StreamHeader ===

impl StreamHeader {
    /// A header without any field.
    pub fn new(kind: StreamKind) -> Self {
        StreamHeader {
            kind,
            payload_follows: false,
            target: None,
            request_id: None,
            traceparent: None,
            dial_deadline_ms: None,
            client_addr: None,
            principal: None,
        }
    }

    /// The bytes of the header. Client address and principal are cut to 255 bytes; a target that
    /// is too long is an error, because a cut name would be another target.
    pub fn encode(&self) -> Result<Bytes, EncodeError> {
        let mut body = Vec::with_capacity(128);
        if let Some(target) = &self.target {
            put(
                &mut body,
                field::TARGET,
                target.as_bytes(),
                "target",
                TARGET_NAME_BYTES_MAX,
            )?;
        }
        if let Some(RequestId(id)) = &self.request_id {
            put(&mut body, field::REQUEST_ID, id, "request id", id.len())?;
        }
        if let Some(trace) = &self.traceparent {
            if trace.len() != TRACEPARENT_BYTES || !trace.is_ascii() {
                return Err(EncodeError::Traceparent);
            }
            put(
                &mut body,
                field::TRACEPARENT,
                trace.as_bytes(),
                "traceparent",
                trace.len(),
            )?;
        }
        if let Some(deadline_ms) = self.dial_deadline_ms {
            put(
                &mut body,
                field::DIAL_DEADLINE,
                &deadline_ms.to_be_bytes(),
                "deadline",
                4,
            )?;
        }
        let logged = [
            (field::CLIENT_ADDR, &self.client_addr),
            (field::PRINCIPAL, &self.principal),
        ];
        for (kind, value) in logged {
            if let Some(value) = value {
                let value = text::clip(value, LOG_FIELD_BYTES_MAX).as_bytes();
                put(&mut body, kind, value, "log field", LOG_FIELD_BYTES_MAX)?;
            }
        }
        let flags = if self.payload_follows {
            FLAG_PAYLOAD
        } else {
            0
        };
        wire::block(self.kind as u8, flags, &body, STREAM_HEADER_BYTES_MAX).map_err(|_| {
            EncodeError::TooLong {
                field: "header",
                max: usize::from(STREAM_HEADER_BYTES_MAX),
            }
        })
    }

    fn parse(kind: u8, flags: u8, body: &[u8]) -> Result<Self, OpenError> {
        let kind = match kind {
            0 => StreamKind::Control,
            1 => StreamKind::Http,
            2 => StreamKind::Tcp,
            other => return Err(OpenError::Kind(other)),
        };
        if flags & !FLAG_PAYLOAD != 0 {
            return Err(OpenError::Reserved(flags));
        }
        let mut header = StreamHeader::new(kind);
        header.payload_follows = flags & FLAG_PAYLOAD != 0;
        let mut reader = Reader::new(body);
        while !reader.is_empty() {
            let (field, value) = reader.tlv().map_err(|_| OpenError::Short)?;
            header
                .take_field(field, value)
                .ok_or(OpenError::Field { field })?;
        }
        Ok(header)
    }

    /// `None` = impossible value or repeated field. Unknown fields are skipped.
    fn take_field(&mut self, field: u8, mut value: Reader<'_>) -> Option<()> {
        match field {
            field::TARGET => set(
                &mut self.target,
                short_text(&mut value, TARGET_NAME_BYTES_MAX)?,
            ),
            field::REQUEST_ID => {
                let id = RequestId(value.array().ok()?);
                if value.is_empty() {
                    set(&mut self.request_id, id)
                } else {
                    None
                }
            }
            field::TRACEPARENT => {
                let trace = short_text(&mut value, TRACEPARENT_BYTES)?;
                let fits = trace.len() == TRACEPARENT_BYTES && trace.is_ascii();
                if fits {
                    set(&mut self.traceparent, trace)
                } else {
                    None
                }
            }
            field::DIAL_DEADLINE => {
                let deadline_ms = value.u32().ok()?;
                if value.is_empty() {
                    set(&mut self.dial_deadline_ms, deadline_ms)
                } else {
                    None
                }
            }
            field::CLIENT_ADDR => set(
                &mut self.client_addr,
                short_text(&mut value, LOG_FIELD_BYTES_MAX)?,
            ),
            field::PRINCIPAL => set(
                &mut self.principal,
                short_text(&mut value, LOG_FIELD_BYTES_MAX)?,
            ),
            _ => Some(()),
        }
    }
}

fn put(
    body: &mut Vec<u8>,
    kind: u8,
    value: &[u8],
    field: &'static str,
    max: usize,
) -> Result<(), EncodeError> {
    let error = EncodeError::TooLong { field, max };
    if value.len() > max {
        return Err(error);
    }
    wire::put_tlv(body, kind, value).map_err(|_| error)
}

fn set<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

fn short_text(value: &mut Reader<'_>, max: usize) -> Option<Arc<str>> {
    let bytes = value.rest();
    let text = core::str::from_utf8(bytes).ok()?;
    (text.len() <= max).then(|| Arc::from(text))
}

impl StreamHeaderDecoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the header's bytes off the front of `input` and leaves the payload that follows.
    /// `None` = all of `input` was taken and more is needed.
    pub fn push(&mut self, input: &mut Bytes) -> Result<Option<StreamHeader>, OpenError> {
        let max = STREAM_HEADER_BYTES_MAX;
        let block = self
            .0
            .next(input, max)
            .map_err(|error| too_long(error.announced, max))?;
        block
            .map(|block| StreamHeader::parse(block.first, block.second, &block.body))
            .transpose()
    }
}

fn too_long(announced: u16, max: u16) -> OpenError {
    OpenError::TooLong { announced, max }
}

// === impl DialAnswer ===

impl DialAnswer {
    /// "Connected".
    pub fn connected() -> Self {
        DialAnswer {
            code: DialCode::Connected,
            reason: String::new(),
        }
    }

    /// The bytes of the answer; the reason is cut to 512 bytes.
    pub fn encode(&self) -> Bytes {
        let reason = text::clip(&self.reason, usize::from(DIAL_REASON_BYTES_MAX)).as_bytes();
        let mut out = Vec::with_capacity(wire::BLOCK_HEAD + reason.len());
        out.extend_from_slice(&[self.code as u8, 0]);
        // The clipped reason always fits its length field.
        let _ = wire::put_short_bytes(&mut out, reason);
        Bytes::from(out)
    }
}

impl DialAnswerDecoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the answer's bytes off the front of `input` and leaves what follows. A reason that is
    /// not UTF-8 is repaired; it only serves logs.
    pub fn push(&mut self, input: &mut Bytes) -> Result<Option<DialAnswer>, OpenError> {
        let max = DIAL_REASON_BYTES_MAX;
        let block = self
            .0
            .next(input, max)
            .map_err(|error| too_long(error.announced, max))?;
        let Some(block) = block else { return Ok(None) };
        if block.second != 0 {
            return Err(OpenError::Reserved(block.second));
        }
        let code = DialCode::from_u8(block.first).ok_or(OpenError::DialCode(block.first))?;
        let reason = String::from_utf8_lossy(&block.body).into_owned();
        Ok(Some(DialAnswer { code, reason }))
    }
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
