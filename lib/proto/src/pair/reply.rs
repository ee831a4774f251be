//! What a relay answers.

use core::fmt;

/// Bytes of a reply.
pub const REPLY_BYTES: usize = 8;
const MAGIC: [u8; 4] = *b"CVRR";
/// From here on a code ends the connection.
const FIRST_END: u8 = 0x10;

/// What a relay says to a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReplyCode {
    /// The other side is not here yet, or the relay is full: stay.
    Wait = 0x01,
    /// Raw bytes of the other side follow.
    Matched = 0x02,
    /// Too many connections, or waiters, of this source.
    RateLimit = 0x10,
    /// The proof does not hold.
    BadProof = 0x12,
    /// The bytes are no preface.
    BadPreface = 0x13,
    /// The relay ends: dial another one, or later.
    Draining = 0x14,
    /// The other side did not come.
    WaitedTooLong = 0x15,
    /// An open join, which this relay does not let in.
    OpenRefused = 0x16,
}

/// One reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What is said.
    pub code: ReplyCode,
    /// Seconds after which another try makes sense; 0 says nothing.
    pub retry_after_s: u16,
}

/// Bytes that are no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// They do not begin with "CVRR".
    #[error("a relay's reply begins with \"CVRR\"; seen {0:02x?}")]
    Magic([u8; 4]),
    /// A code that does not exist.
    #[error("relay's reply {0:#04x} is not known here: this agent may be older than the relay")]
    Code(u8),
}

impl ReplyCode {
    /// All of them.
    pub const ALL: [ReplyCode; 8] = [
        ReplyCode::Wait,
        ReplyCode::Matched,
        ReplyCode::RateLimit,
        ReplyCode::BadProof,
        ReplyCode::BadPreface,
        ReplyCode::Draining,
        ReplyCode::WaitedTooLong,
        ReplyCode::OpenRefused,
    ];

    /// The connection ends after it.
    #[must_use]
    pub fn is_end(self) -> bool {
        self as u8 >= FIRST_END
    }

    /// The word in logs and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ReplyCode::Wait => "wait",
            ReplyCode::Matched => "matched",
            ReplyCode::RateLimit => "rate_limit",
            ReplyCode::BadProof => "bad_proof",
            ReplyCode::BadPreface => "bad_preface",
            ReplyCode::Draining => "draining",
            ReplyCode::WaitedTooLong => "waited_too_long",
            ReplyCode::OpenRefused => "open_refused",
        }
    }
}

impl fmt::Display for ReplyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<ReplyCode> for Reply {
    fn from(code: ReplyCode) -> Self {
        Reply {
            code,
            retry_after_s: 0,
        }
    }
}

impl Reply {
    /// The bytes.
    #[must_use]
    pub fn encode(self) -> [u8; REPLY_BYTES] {
        let [a, b, c, d] = MAGIC;
        let [high, low] = self.retry_after_s.to_be_bytes();
        [a, b, c, d, self.code as u8, 0, high, low]
    }

    /// From the bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8; REPLY_BYTES]) -> Result<Self, ReplyError> {
        let [a, b, c, d, code, _, high, low] = *bytes;
        if [a, b, c, d] != MAGIC {
            return Err(ReplyError::Magic([a, b, c, d]));
        }
        let known = ReplyCode::ALL.into_iter().find(|it| *it as u8 == code);
        Ok(Reply {
            code: known.ok_or(ReplyError::Code(code))?,
            retry_after_s: u16::from_be_bytes([high, low]),
        })
    }
}
