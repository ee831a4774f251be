//! The stream header, written by the hub and read by the agent (P5.1).

use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;
use zeroize::Zeroizing;

use super::{
    EncodeError, LOG_FIELD_BYTES_MAX, OpenError, StreamHeader, StreamKind, TRACEPARENT_BYTES,
};
use crate::channel::{ChannelOffer, Form};
use crate::control::Ticket;
use crate::id::RequestId;
use crate::limits::{FIRST_BYTES_MAX, STREAM_HEADER_BYTES_MAX, TARGET_NAME_BYTES_MAX};
use crate::text;
use crate::wire::{self, BlockDecoder, Reader};

/// Collects a stream header from pieces of any size.
#[derive(Default)]
pub struct StreamHeaderDecoder(BlockDecoder);

const FLAG_PAYLOAD: u8 = 1;

/// Ticket id, key and form.
const OFFER_BYTES: usize = 16 + 32 + 1;

mod field {
    pub(super) const TARGET: u8 = 1;
    pub(super) const REQUEST_ID: u8 = 2;
    pub(super) const TRACEPARENT: u8 = 3;
    pub(super) const DIAL_DEADLINE: u8 = 4;
    pub(super) const CLIENT_ADDR: u8 = 5;
    pub(super) const PRINCIPAL: u8 = 6;
    pub(super) const OFFER: u8 = 7;
    pub(super) const EARLY_BYTES: u8 = 8;
}

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
            offer: None,
            early_bytes: None,
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
        if let Some(ChannelOffer { form, ticket }) = &self.offer {
            let mut offer = Zeroizing::new([0; OFFER_BYTES]);
            offer[..16].copy_from_slice(&ticket.id);
            offer[16..48].copy_from_slice(&ticket.key);
            offer[48] = *form as u8;
            put(
                &mut body,
                field::OFFER,
                offer.as_slice(),
                "offer",
                OFFER_BYTES,
            )?;
        }
        if let Some(early) = self.early_bytes {
            let early = early.to_be_bytes();
            put(&mut body, field::EARLY_BYTES, &early, "early bytes", 2)?;
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
            field::OFFER => {
                let (id, key) = (value.array().ok()?, value.array().ok()?);
                let form = Form::from_u8(value.u8().ok()?)?;
                let ticket = Ticket { id, key };
                let offer = ChannelOffer { form, ticket };
                if value.is_empty() {
                    set(&mut self.offer, offer)
                } else {
                    None
                }
            }
            field::EARLY_BYTES => {
                let early = value.u16().ok()?;
                if value.is_empty() && usize::from(early) <= FIRST_BYTES_MAX {
                    set(&mut self.early_bytes, early)
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
            .map_err(|error| OpenError::TooLong {
                announced: error.announced,
                max,
            })?;
        block
            .map(|block| StreamHeader::parse(block.first, block.second, &block.body))
            .transpose()
    }
}
