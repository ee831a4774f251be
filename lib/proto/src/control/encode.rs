//! Writing control messages.

use alloc::vec::Vec;
use bytes::Bytes;

use super::{
    AgentFacts, AgentStats, Bye, CONTROL_TEXT_BYTES_MAX, ChannelFail, ControlMessage,
    DRAIN_ADDRESSES_MAX, Drain, Grant, Rotate, TICKETS_MAX, Tickets,
};
use crate::channel::Form;
use crate::limits::{
    CONTROL_MESSAGE_BYTES_MAX, LABEL_BYTES_MAX, LABELS_MAX, TARGET_NAME_BYTES_MAX, TARGETS_MAX,
};
use crate::text;
use crate::wire::{self, BLOCK_HEAD, TooLong};

/// On TICKETS: for channels of form 2.
pub(super) const FLAG_PLAIN: u8 = 2;

pub(super) mod kind {
    pub(in crate::control) const BEAT: u8 = 0x01;
    pub(in crate::control) const ECHO: u8 = 0x02;
    pub(in crate::control) const HELLO: u8 = 0x03;
    pub(in crate::control) const GRANT: u8 = 0x04;
    pub(in crate::control) const TICKETS: u8 = 0x05;
    pub(in crate::control) const CHANNEL_FAIL: u8 = 0x06;
    pub(in crate::control) const DRAIN: u8 = 0x07;
    pub(in crate::control) const ROTATE: u8 = 0x08;
    pub(in crate::control) const ROTATED: u8 = 0x09;
    pub(in crate::control) const RENEW: u8 = 0x0A;
    pub(in crate::control) const CERT: u8 = 0x0B;
    pub(in crate::control) const BYE: u8 = 0x0C;
    pub(in crate::control) const STATS: u8 = 0x0D;
}

pub(super) mod hello {
    pub(in crate::control) const VERSION: u8 = 1;
    pub(in crate::control) const TARGET: u8 = 2;
    pub(in crate::control) const STREAMS_MAX: u8 = 3;
    pub(in crate::control) const REGION: u8 = 4;
    pub(in crate::control) const LABEL: u8 = 5;
    pub(in crate::control) const PLATFORM: u8 = 6;
}

pub(super) mod stats {
    pub(in crate::control) const DIAL_P50_US: u8 = 1;
    pub(in crate::control) const DIAL_P99_US: u8 = 2;
    pub(in crate::control) const TARGET_ERRORS: u8 = 3;
    pub(in crate::control) const POOL_IDLE: u8 = 4;
    pub(in crate::control) const POOL_WANTED: u8 = 5;
    pub(in crate::control) const STREAMS: u8 = 6;
    pub(in crate::control) const KERNEL_FEATURES: u8 = 7;
}

/// Body bytes of the largest message; the whole message is at most 16 KiB.
pub(super) fn body_max() -> u16 {
    u16::try_from(CONTROL_MESSAGE_BYTES_MAX - BLOCK_HEAD).unwrap_or(u16::MAX)
}

/// A message that does not fit the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is over {CONTROL_MESSAGE_BYTES_MAX} bytes, or one of its lists is too long")]
pub struct ControlEncodeError {
    /// Which message.
    pub name: &'static str,
}

impl ControlMessage {
    /// The message's bytes.
    pub fn encode(&self) -> Result<Bytes, ControlEncodeError> {
        let mut body = Vec::new();
        let written = self
            .write_body(&mut body)
            .and_then(|kind| wire::block(kind, self.flags(), &body, body_max()));
        zeroize::Zeroize::zeroize(&mut body);
        written.map_err(|TooLong| ControlEncodeError { name: self.name() })
    }

    fn flags(&self) -> u8 {
        match self {
            ControlMessage::Tickets(tickets) if tickets.form == Form::Plain => FLAG_PLAIN,
            _ => 0,
        }
    }

    fn write_body(&self, body: &mut Vec<u8>) -> Result<u8, TooLong> {
        Ok(match self {
            ControlMessage::Beat { nonce } => {
                body.extend_from_slice(&nonce.to_be_bytes());
                kind::BEAT
            }
            ControlMessage::Echo { nonce } => {
                body.extend_from_slice(&nonce.to_be_bytes());
                kind::ECHO
            }
            ControlMessage::Hello(facts) => {
                write_hello(body, facts)?;
                kind::HELLO
            }
            ControlMessage::Grant(grant) => {
                write_grant(body, grant)?;
                kind::GRANT
            }
            ControlMessage::Tickets(tickets) => {
                write_tickets(body, tickets)?;
                kind::TICKETS
            }
            ControlMessage::ChannelFail(fail) => {
                write_channel_fail(body, fail);
                kind::CHANNEL_FAIL
            }
            ControlMessage::Drain(drain) => {
                write_drain(body, drain)?;
                kind::DRAIN
            }
            ControlMessage::Rotate(rotate) => {
                write_rotate(body, rotate);
                kind::ROTATE
            }
            ControlMessage::Rotated { digest } => {
                body.extend_from_slice(&digest.0);
                kind::ROTATED
            }
            ControlMessage::Renew { csr } => {
                body.extend_from_slice(csr);
                kind::RENEW
            }
            ControlMessage::Cert { chain, ca_bundle } => {
                wire::put_short_bytes(body, chain.as_bytes())?;
                wire::put_short_bytes(body, ca_bundle.as_bytes())?;
                kind::CERT
            }
            ControlMessage::Bye(Bye { reason, text }) => {
                body.push(*reason as u8);
                body.extend_from_slice(text::clip(text, CONTROL_TEXT_BYTES_MAX).as_bytes());
                kind::BYE
            }
            ControlMessage::Stats(stats) => {
                write_stats(body, stats)?;
                kind::STATS
            }
        })
    }
}

fn write_hello(body: &mut Vec<u8>, facts: &AgentFacts) -> Result<(), TooLong> {
    let labels = facts.labels.iter().flat_map(|(key, value)| [key, value]);
    let mut texts = labels.chain([&facts.version, &facts.region, &facts.platform]);
    let targets_fit = facts
        .targets
        .iter()
        .all(|name| name.len() <= TARGET_NAME_BYTES_MAX);
    if facts.targets.len() > TARGETS_MAX
        || facts.labels.len() > LABELS_MAX
        || !targets_fit
        || texts.any(|text| text.len() > LABEL_BYTES_MAX)
    {
        return Err(TooLong);
    }
    wire::put_tlv(body, hello::VERSION, facts.version.as_bytes())?;
    for target in &facts.targets {
        wire::put_tlv(body, hello::TARGET, target.as_bytes())?;
    }
    if let Some(streams_max) = facts.streams_max {
        wire::put_tlv(body, hello::STREAMS_MAX, &streams_max.to_be_bytes())?;
    }
    if !facts.region.is_empty() {
        wire::put_tlv(body, hello::REGION, facts.region.as_bytes())?;
    }
    for (key, value) in &facts.labels {
        let mut label = Vec::with_capacity(2 + key.len() + value.len());
        wire::put_short_bytes(&mut label, key.as_bytes())?;
        label.extend_from_slice(value.as_bytes());
        wire::put_tlv(body, hello::LABEL, &label)?;
    }
    if !facts.platform.is_empty() {
        wire::put_tlv(body, hello::PLATFORM, facts.platform.as_bytes())?;
    }
    Ok(())
}

fn write_grant(body: &mut Vec<u8>, grant: &Grant) -> Result<(), TooLong> {
    let count = u16::try_from(grant.targets.len()).map_err(|_| TooLong)?;
    let names_fit = grant
        .targets
        .iter()
        .all(|name| name.len() <= TARGET_NAME_BYTES_MAX);
    if usize::from(count) > TARGETS_MAX || !names_fit {
        return Err(TooLong);
    }
    body.extend_from_slice(&grant.epoch.0.to_be_bytes());
    body.extend_from_slice(&count.to_be_bytes());
    grant
        .targets
        .iter()
        .try_for_each(|target| wire::put_short_bytes(body, target.as_bytes()))
}

fn write_tickets(body: &mut Vec<u8>, tickets: &Tickets) -> Result<(), TooLong> {
    debug_assert!(TICKETS_MAX <= usize::from(u8::MAX));
    body.push(u8::try_from(tickets.tickets.len()).map_err(|_| TooLong)?);
    body.extend_from_slice(&tickets.ttl_s.to_be_bytes());
    for ticket in &tickets.tickets {
        body.extend_from_slice(&ticket.id);
        body.extend_from_slice(&ticket.key);
    }
    Ok(())
}

fn write_channel_fail(body: &mut Vec<u8>, fail: &ChannelFail) {
    body.extend_from_slice(&fail.id);
    body.push(fail.code as u8);
    body.extend_from_slice(text::clip(&fail.reason, CONTROL_TEXT_BYTES_MAX).as_bytes());
}

fn write_rotate(body: &mut Vec<u8>, rotate: &Rotate) {
    let token = rotate.token.expose().as_bytes();
    // Growing would leave a copy of the token behind.
    body.reserve_exact(8 + token.len());
    body.extend_from_slice(&rotate.not_before_unix_s.to_be_bytes());
    body.extend_from_slice(token);
}

fn write_drain(body: &mut Vec<u8>, drain: &Drain) -> Result<(), TooLong> {
    if drain.addresses.len() > DRAIN_ADDRESSES_MAX {
        return Err(TooLong);
    }
    body.extend_from_slice(&drain.reconnect_within_ms.to_be_bytes());
    body.extend_from_slice(&drain.deadline_ms.to_be_bytes());
    drain
        .addresses
        .iter()
        .try_for_each(|address| wire::put_short_bytes(body, address.as_bytes()))
}

fn write_stats(body: &mut Vec<u8>, values: &AgentStats) -> Result<(), TooLong> {
    for (kind, value) in [
        (stats::DIAL_P50_US, values.dial_p50_us),
        (stats::DIAL_P99_US, values.dial_p99_us),
        (stats::POOL_IDLE, values.pool_idle),
        (stats::POOL_WANTED, values.pool_wanted),
        (stats::STREAMS, values.streams),
    ] {
        if let Some(value) = value {
            wire::put_tlv(body, kind, &value.to_be_bytes())?;
        }
    }
    if let Some(errors) = values.target_errors {
        wire::put_tlv(body, stats::TARGET_ERRORS, &errors.to_be_bytes())?;
    }
    let features = text::clip(&values.kernel_features, LABEL_BYTES_MAX);
    if !features.is_empty() {
        wire::put_tlv(body, stats::KERNEL_FEATURES, features.as_bytes())?;
    }
    Ok(())
}
