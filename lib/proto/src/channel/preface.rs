//! First bytes of a data channel, and the hub's answer.

use super::{ANSWER_BYTES, Form, MAGIC, PREFACE_BYTES, SIGNED_BYTES};
use crate::id::Epoch;
use crate::wire::Reader;

/// The version of the layout.
const VERSION: u8 = 1;

/// What an agent shows to be let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preface {
    /// Must match what the channel runs in.
    pub form: Form,
    /// Id of the ticket.
    pub ticket: [u8; 16],
    /// Epoch of the session that got the ticket.
    pub epoch: Epoch,
}

/// Bytes that are no preface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefaceError {
    /// They do not begin with "CVDC".
    #[error("a data channel begins with \"CVDC\"; seen {0:02x?}")]
    Magic([u8; 4]),
    /// A version that is not spoken here.
    #[error("data channel version {0}; version 1 is spoken here")]
    Version(u8),
    /// Neither form 1 nor form 2.
    #[error("data channel form {0}; 1 (TLS) and 2 (plain) exist")]
    Form(u8),
    /// Reserved bytes are set.
    #[error("reserved bytes are {0:#06x}, not 0")]
    Reserved(u16),
    /// An answer code that does not exist.
    #[error("answer code {0}; 0 to 3 exist")]
    Code(u8),
}

impl Preface {
    /// What the HMAC-SHA256 with the ticket's key covers.
    pub fn signed_part(&self) -> [u8; SIGNED_BYTES] {
        let mut out = [0; SIGNED_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = self.form as u8;
        out[8..24].copy_from_slice(&self.ticket);
        out[24..].copy_from_slice(&self.epoch.0.to_be_bytes());
        out
    }

    /// The bytes with their HMAC.
    pub fn encode(&self, mac: &[u8; 32]) -> [u8; PREFACE_BYTES] {
        let mut out = [0; PREFACE_BYTES];
        out[..SIGNED_BYTES].copy_from_slice(&self.signed_part());
        out[SIGNED_BYTES..].copy_from_slice(mac);
        out
    }

    /// The preface and its HMAC, which is not checked here.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8; PREFACE_BYTES]) -> Result<(Self, [u8; 32]), PrefaceError> {
        let (head, rest) = read_head(bytes)?;
        let [form, ..] = head;
        let form_known = Form::from_u8(form).ok_or(PrefaceError::Form(form))?;
        reserved([head[1], head[2]])?;
        let mut rest = Reader::new(rest);
        let fields = (rest.array(), rest.u64(), rest.array());
        let (Ok(ticket), Ok(epoch), Ok(mac)) = fields else {
            // Only for a length that the type forbids.
            return Err(PrefaceError::Version(0));
        };
        let preface = Preface {
            form: form_known,
            ticket,
            epoch: Epoch(epoch),
        };
        Ok((preface, mac))
    }
}

/// What the hub says to a preface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ChannelAnswer {
    /// The ticket is good: the channel waits, or serves the open it was for.
    Parked = 0,
    /// Unknown, used, expired or forged.
    BadTicket = 1,
    /// The session that got it is not the current one.
    StaleEpoch = 2,
    /// As many channels wait as may.
    PoolFull = 3,
}

impl ChannelAnswer {
    const ALL: [ChannelAnswer; 4] = [
        ChannelAnswer::Parked,
        ChannelAnswer::BadTicket,
        ChannelAnswer::StaleEpoch,
        ChannelAnswer::PoolFull,
    ];

    /// The word in logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            ChannelAnswer::Parked => "parked",
            ChannelAnswer::BadTicket => "bad_ticket",
            ChannelAnswer::StaleEpoch => "stale_epoch",
            ChannelAnswer::PoolFull => "pool_full",
        }
    }

    /// The bytes.
    pub fn encode(self) -> [u8; ANSWER_BYTES] {
        let [a, b, c, d] = MAGIC;
        [a, b, c, d, VERSION, self as u8, 0, 0]
    }

    /// From the bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8; ANSWER_BYTES]) -> Result<Self, PrefaceError> {
        let (head, _) = read_head(bytes)?;
        reserved([head[1], head[2]])?;
        let known = Self::ALL.into_iter().find(|it| *it as u8 == head[0]);
        known.ok_or(PrefaceError::Code(head[0]))
    }
}

/// Magic and version checked: the three bytes behind them, and the rest.
fn read_head(bytes: &[u8]) -> Result<([u8; 3], &[u8]), PrefaceError> {
    let mut reader = Reader::new(bytes);
    let magic = reader.array().unwrap_or_default();
    if magic != MAGIC {
        return Err(PrefaceError::Magic(magic));
    }
    match reader.u8() {
        Ok(VERSION) => {}
        other => return Err(PrefaceError::Version(other.unwrap_or_default())),
    }
    Ok((reader.array().unwrap_or_default(), reader.rest()))
}

fn reserved(bytes: [u8; 2]) -> Result<(), PrefaceError> {
    match u16::from_be_bytes(bytes) {
        0 => Ok(()),
        other => Err(PrefaceError::Reserved(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: Preface = Preface {
        form: Form::Plain,
        ticket: [0xA5; 16],
        epoch: Epoch(0x0102_0304_0506_0708),
    };

    #[test]
    fn golden_bytes() {
        let bytes = PREFACE.encode(&[0xEE; 32]);
        assert_eq!(&bytes[..8], b"CVDC\x01\x02\x00\x00");
        assert_eq!(bytes[8..24], [0xA5; 16]);
        assert_eq!(bytes[24..32], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[32..], [0xEE; 32]);
        assert_eq!(Preface::decode(&bytes), Ok((PREFACE, [0xEE; 32])));
        assert_eq!(ChannelAnswer::StaleEpoch.encode(), *b"CVDC\x01\x02\x00\x00");
        for answer in ChannelAnswer::ALL {
            assert_eq!(ChannelAnswer::decode(&answer.encode()), Ok(answer));
        }
    }

    /// Each byte of the head counts: no change of one is read as the same.
    #[test]
    fn a_changed_byte_is_an_error_or_another_preface() {
        let good = PREFACE.encode(&[7; 32]);
        for at in 0..good.len() {
            let mut bad = good;
            bad[at] ^= 0x40;
            match Preface::decode(&bad) {
                Ok(read) => assert_ne!(read, (PREFACE, [7; 32]), "byte {at}"),
                Err(why) => assert!(at < 8, "byte {at}: {why}"),
            }
        }
    }
}
