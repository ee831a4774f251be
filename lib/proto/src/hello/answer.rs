//! The hub's 101: written by the hub, read by the agent.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Caps, CarrierKind, SUBPROTOCOL, UPGRADE_NATIVE, UPGRADE_WEBSOCKET, header};
use crate::id::Epoch;
use crate::limits::{BEAT_DEAD_MS, BEAT_INTERVAL_MS};
use crate::text;

/// What the hub grants with its 101.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloAnswer {
    /// The carrier chosen.
    pub kind: CarrierKind,
    /// The session's epoch.
    pub epoch: Epoch,
    /// Capabilities both ends have.
    pub caps: Caps,
    /// BEAT period, ms; whole seconds on the wire.
    pub beat_ms: u64,
    /// Silence that means death, ms; whole seconds on the wire.
    pub dead_ms: u64,
}

/// A 101 that does not come from a culvert/1 hub, or was changed on its way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Another upgrade than one we offered.
    #[error("the hub chose upgrade {seen:?}; this agent speaks culvert/1, alone or on websocket")]
    Upgrade {
        /// The upgrade seen, cut to 64 bytes.
        seen: String,
    },
    /// A field is missing or unusable.
    #[error(
        "the hub's 101 lacks a usable {0}: it is no culvert/1 hub, or a box changed the answer"
    )]
    Field(&'static str),
}

impl HelloAnswer {
    /// An answer with the standard beat.
    pub fn new(kind: CarrierKind, epoch: Epoch, caps: Caps) -> Self {
        HelloAnswer {
            kind,
            epoch,
            caps,
            beat_ms: BEAT_INTERVAL_MS,
            dead_ms: BEAT_DEAD_MS,
        }
    }

    /// Header fields of the 101. `Sec-WebSocket-Accept` is added by who speaks WebSocket.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let upgrade = match self.kind {
            CarrierKind::Native => UPGRADE_NATIVE,
            CarrierKind::WebSocket | CarrierKind::Radar => UPGRADE_WEBSOCKET,
        };
        let mut fields = alloc::vec![
            ("connection", String::from("Upgrade")),
            ("upgrade", upgrade.into())
        ];
        if self.kind == CarrierKind::Radar {
            return fields;
        }
        if self.kind == CarrierKind::WebSocket {
            fields.push(("sec-websocket-protocol", SUBPROTOCOL.into()));
        }
        fields.push((header::EPOCH, self.epoch.to_string()));
        fields.push((header::CAPS, self.caps.to_string()));
        let beat = format!("{},{}", self.beat_ms / 1_000, self.dead_ms / 1_000);
        fields.push((header::BEAT, beat));
        fields
    }

    /// Reads a 101. `offered` are the agent's own capabilities: what it did not offer is dropped.
    pub fn parse<'a>(
        offered: Caps,
        headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<HelloAnswer, AnswerError> {
        let (mut upgrade, mut subprotocol) = (None, None);
        let (mut epoch, mut caps, mut beat) = (None, None, None);
        for (name, value) in headers {
            let place = match name.to_ascii_lowercase().as_str() {
                "upgrade" => &mut upgrade,
                "sec-websocket-protocol" => &mut subprotocol,
                header::EPOCH => &mut epoch,
                header::CAPS => &mut caps,
                header::BEAT => &mut beat,
                _ => continue,
            };
            *place = core::str::from_utf8(value).ok().map(str::trim);
        }
        let kind = match upgrade {
            Some(seen) if seen == UPGRADE_NATIVE => CarrierKind::Native,
            Some(seen) if seen.eq_ignore_ascii_case(UPGRADE_WEBSOCKET) => {
                if subprotocol != Some(SUBPROTOCOL) {
                    return Err(AnswerError::Field("Sec-WebSocket-Protocol"));
                }
                CarrierKind::WebSocket
            }
            seen => {
                let seen = String::from(text::clip(seen.unwrap_or(""), 64));
                return Err(AnswerError::Upgrade { seen });
            }
        };
        let epoch = epoch
            .and_then(decimal)
            .map(Epoch)
            .ok_or(AnswerError::Field("Culvert-Epoch"))?;
        let (beat_ms, dead_ms) = beat
            .map_or(Some((BEAT_INTERVAL_MS, BEAT_DEAD_MS)), beat_times)
            .ok_or(AnswerError::Field("Culvert-Beat"))?;
        // Every hub says what it agreed to. An agent that guessed could overrun a small window.
        let caps = caps.ok_or(AnswerError::Field("Culvert-Caps"))?;
        let caps = Caps::parse(caps) & offered;
        Ok(HelloAnswer {
            kind,
            epoch,
            caps,
            beat_ms,
            dead_ms,
        })
    }
}

/// `<beat s>,<dead s>`: 1 to 60 s, and death after at least two beats but within 300 s.
fn beat_times(value: &str) -> Option<(u64, u64)> {
    let (beat, dead) = value.split_once(',')?;
    let (beat, dead) = (decimal(beat.trim())?, decimal(dead.trim())?);
    let sensible = (1..=60).contains(&beat) && (2 * beat..=300).contains(&dead);
    sensible.then_some((beat * 1_000, dead * 1_000))
}

/// Digits only: `u64::from_str` would take a sign.
fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}
