//! Reading control messages.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;

use super::encode::{FLAG_PLAIN, body_max, hello, kind, stats};
use super::{
    AgentFacts, AgentStats, Bye, ByeReason, CONTROL_TEXT_BYTES_MAX, ChannelFail, ControlMessage,
    DRAIN_ADDRESSES_MAX, Drain, Grant, Rotate, Ticket, Tickets,
};
use crate::channel::Form;
use crate::id::Epoch;
use crate::limits::{LABEL_BYTES_MAX, LABELS_MAX, TARGET_NAME_BYTES_MAX, TARGETS_MAX};
use crate::open::DialCode;
use crate::text;
use crate::token::{Digest, TokenText};
use crate::wire::{BlockDecoder, Reader};

const FLAG_CRITICAL: u8 = 1;

/// One more than the highest field type of HELLO and STATS.
const KNOWN_FIELDS_END: u8 = 8;

/// Collects control messages from pieces of any size; holds at most one message.
#[derive(Default)]
pub struct ControlDecoder(BlockDecoder);

/// A control stream that breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The message is over its limit.
    #[error("control message with a body of {announced} bytes; at most 16380 are allowed")]
    TooLong {
        /// Bytes announced.
        announced: u16,
    },
    /// A message this version does not know, and that must not be skipped.
    #[error("critical control message of unknown type {0:#04x}; upgrade the older end")]
    UnknownCritical(u8),
    /// A known message with an impossible body.
    #[error("control message of type {0:#04x} has a malformed body")]
    Body(u8),
}

impl ControlDecoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next message off the front of `input`; unknown messages are skipped unless they
    /// are critical. `None` = all of `input` was taken and more is needed.
    pub fn push(&mut self, input: &mut Bytes) -> Result<Option<ControlMessage>, ControlError> {
        loop {
            let block = self
                .0
                .next(input, body_max())
                .map_err(|error| ControlError::TooLong {
                    announced: error.announced,
                })?;
            let Some(block) = block else { return Ok(None) };
            let body = zeroize::Zeroizing::new(block.body);
            match parse(block.first, block.second, &body) {
                Parsed::Message(message) => return Ok(Some(message)),
                Parsed::Malformed => return Err(ControlError::Body(block.first)),
                Parsed::Unknown if block.second & FLAG_CRITICAL != 0 => {
                    return Err(ControlError::UnknownCritical(block.first));
                }
                Parsed::Unknown => {}
            }
        }
    }

    /// Whether no part of a message is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

enum Parsed {
    Message(ControlMessage),
    Malformed,
    Unknown,
}

fn parse(message: u8, flags: u8, body: &[u8]) -> Parsed {
    let reader = Reader::new(body);
    let parsed = match message {
        kind::BEAT => nonce(reader).map(|nonce| ControlMessage::Beat { nonce }),
        kind::ECHO => nonce(reader).map(|nonce| ControlMessage::Echo { nonce }),
        kind::HELLO => read_hello(reader).map(ControlMessage::Hello),
        kind::GRANT => read_grant(reader).map(ControlMessage::Grant),
        kind::TICKETS => read_tickets(flags, reader).map(ControlMessage::Tickets),
        kind::CHANNEL_FAIL => read_channel_fail(reader).map(ControlMessage::ChannelFail),
        kind::DRAIN => read_drain(reader).map(ControlMessage::Drain),
        kind::ROTATE => read_rotate(reader).map(ControlMessage::Rotate),
        kind::ROTATED => <[u8; 32]>::try_from(body)
            .ok()
            .map(|d| ControlMessage::Rotated { digest: Digest(d) }),
        kind::RENEW => Some(ControlMessage::Renew { csr: body.to_vec() }),
        kind::CERT => read_cert(reader),
        kind::BYE => read_bye(reader).map(ControlMessage::Bye),
        kind::STATS => read_stats(reader).map(ControlMessage::Stats),
        _ => return Parsed::Unknown,
    };
    parsed.map_or(Parsed::Malformed, Parsed::Message)
}

fn nonce(mut reader: Reader<'_>) -> Option<u64> {
    let nonce = reader.u64().ok()?;
    reader.is_empty().then_some(nonce)
}

fn read_hello(mut reader: Reader<'_>) -> Option<AgentFacts> {
    let mut facts = AgentFacts::default();
    let mut seen = Seen::default();
    while !reader.is_empty() {
        let (field, mut value) = reader.tlv().ok()?;
        if !matches!(field, hello::TARGET | hello::LABEL) {
            seen.first(field)?;
        }
        match field {
            hello::VERSION => facts.version = owned(value.rest(), LABEL_BYTES_MAX)?,
            hello::TARGET => {
                facts
                    .targets
                    .push(owned(value.rest(), TARGET_NAME_BYTES_MAX)?);
                (facts.targets.len() <= TARGETS_MAX).then_some(())?;
            }
            hello::STREAMS_MAX => facts.streams_max = Some(only_u32(value)?),
            hello::REGION => facts.region = owned(value.rest(), LABEL_BYTES_MAX)?,
            hello::LABEL => {
                let key = owned(value.short_bytes().ok()?, LABEL_BYTES_MAX)?;
                facts
                    .labels
                    .push((key, owned(value.rest(), LABEL_BYTES_MAX)?));
                (facts.labels.len() <= LABELS_MAX).then_some(())?;
            }
            hello::PLATFORM => facts.platform = owned(value.rest(), LABEL_BYTES_MAX)?,
            _ => {}
        }
    }
    Some(facts)
}

fn read_grant(mut reader: Reader<'_>) -> Option<Grant> {
    let epoch = Epoch(reader.u64().ok()?);
    let count = usize::from(reader.u16().ok()?);
    let mut targets = Vec::new();
    for _ in 0..count {
        let name = core::str::from_utf8(reader.short_bytes().ok()?).ok()?;
        (name.len() <= TARGET_NAME_BYTES_MAX && targets.len() < TARGETS_MAX).then_some(())?;
        targets.push(Arc::from(name));
    }
    reader.is_empty().then_some(Grant { epoch, targets })
}

fn read_tickets(flags: u8, mut reader: Reader<'_>) -> Option<Tickets> {
    let count = reader.u8().ok()?;
    let ttl_s = reader.u32().ok()?;
    let mut tickets = Vec::new();
    for _ in 0..count {
        tickets.push(Ticket {
            id: reader.array().ok()?,
            key: reader.array().ok()?,
        });
    }
    let form = match flags & FLAG_PLAIN {
        0 => Form::Tls,
        _ => Form::Plain,
    };
    reader.is_empty().then_some(Tickets {
        ttl_s,
        form,
        tickets,
    })
}

fn read_channel_fail(mut reader: Reader<'_>) -> Option<ChannelFail> {
    let id = reader.array().ok()?;
    let code = DialCode::from_u8(reader.u8().ok()?).filter(|code| *code != DialCode::Connected)?;
    Some(ChannelFail {
        id,
        code,
        reason: repaired(reader.rest()),
    })
}

fn read_drain(mut reader: Reader<'_>) -> Option<Drain> {
    let reconnect_within_ms = reader.u32().ok()?;
    let deadline_ms = reader.u32().ok()?;
    let mut addresses = Vec::new();
    while !reader.is_empty() {
        addresses.push(owned(reader.short_bytes().ok()?, usize::from(u16::MAX))?);
        (addresses.len() <= DRAIN_ADDRESSES_MAX).then_some(())?;
    }
    Some(Drain {
        reconnect_within_ms,
        deadline_ms,
        addresses,
    })
}

fn read_rotate(mut reader: Reader<'_>) -> Option<Rotate> {
    let not_before_unix_s = reader.u64().ok()?;
    let token = TokenText::new(core::str::from_utf8(reader.rest()).ok()?).ok()?;
    Some(Rotate {
        not_before_unix_s,
        token,
    })
}

fn read_cert(mut reader: Reader<'_>) -> Option<ControlMessage> {
    let chain = owned(reader.short_bytes().ok()?, usize::from(u16::MAX))?;
    let ca_bundle = owned(reader.short_bytes().ok()?, usize::from(u16::MAX))?;
    reader
        .is_empty()
        .then_some(ControlMessage::Cert { chain, ca_bundle })
}

fn read_bye(mut reader: Reader<'_>) -> Option<Bye> {
    // A later version may name a reason we do not know; the session ends all the same.
    let reason = ByeReason::from_u8(reader.u8().ok()?).unwrap_or(ByeReason::Shutdown);
    Some(Bye {
        reason,
        text: repaired(reader.rest()),
    })
}

fn read_stats(mut reader: Reader<'_>) -> Option<AgentStats> {
    let mut values = AgentStats::default();
    let mut seen = Seen::default();
    while !reader.is_empty() {
        let (field, mut value) = reader.tlv().ok()?;
        seen.first(field)?;
        match field {
            stats::DIAL_P50_US => values.dial_p50_us = Some(only_u32(value)?),
            stats::DIAL_P99_US => values.dial_p99_us = Some(only_u32(value)?),
            stats::TARGET_ERRORS => values.target_errors = Some(nonce(value)?),
            stats::POOL_IDLE => values.pool_idle = Some(only_u32(value)?),
            stats::POOL_WANTED => values.pool_wanted = Some(only_u32(value)?),
            stats::STREAMS => values.streams = Some(only_u32(value)?),
            stats::KERNEL_FEATURES => {
                values.kernel_features = owned(value.rest(), LABEL_BYTES_MAX)?;
            }
            _ => {}
        }
    }
    Some(values)
}

/// Known scalar fields already read; a second one is an error. Types of later versions may repeat.
#[derive(Default)]
struct Seen(u16);

impl Seen {
    fn first(&mut self, field: u8) -> Option<()> {
        let bit = 1u16
            .checked_shl(u32::from(field))
            .filter(|_| field < KNOWN_FIELDS_END);
        let bit = bit.unwrap_or(0);
        let first = self.0 & bit == 0;
        self.0 |= bit;
        first.then_some(())
    }
}

fn only_u32(mut reader: Reader<'_>) -> Option<u32> {
    let value = reader.u32().ok()?;
    reader.is_empty().then_some(value)
}

fn owned(bytes: &[u8], max: usize) -> Option<String> {
    let text = core::str::from_utf8(bytes).ok()?;
    (text.len() <= max).then(|| String::from(text))
}

fn repaired(bytes: &[u8]) -> String {
    let lossy = String::from_utf8_lossy(bytes);
    String::from(text::clip(&lossy, CONTROL_TEXT_BYTES_MAX))
}
