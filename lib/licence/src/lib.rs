//! The licence as the contract has it (section 10): verified offline, never
//! more than a warning, and a heartbeat of seven fields.
//!
//! Pure: no file, no socket, no clock, no random number. Time and randomness are
//! arguments; what must be shown, logged, sent or stored are values.
#![forbid(unsafe_code)]

mod banner;
mod boot;
mod heartbeat;
mod issue;
mod keys;
mod ladder;
pub mod vendor;
mod verify;

pub use banner::{Banner, Level, banner, login_warning};
pub use boot::{Boot, Candidate, Line, Severity, Source, boot};
pub use heartbeat::{
    ANSWER_BYTES_MAX, Answer, AnswerError, Beat, FIRST_MS_MAX, Payload, hub_mode, next_delay_ms,
};
pub use issue::{IssueError, Terms, issue};
pub use keys::{Key, KeySet, KeySetError};
pub use ladder::{DAY_MS, Ladder, Rung};
pub use verify::{Invalid, License, TOKEN_BYTES_MAX, verify};

/// The verdict on the licence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Signed by the vendor, in its time.
    Valid,
    /// Signed by the vendor, past its end.
    Expired,
    /// There is one, and it cannot be believed.
    Invalid,
    /// There is none.
    Unlicensed,
}

impl Standing {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Valid, Self::Expired, Self::Invalid, Self::Unlicensed];

    /// The word in API and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Invalid => "invalid",
            Self::Unlicensed => "unlicensed",
        }
    }
}
