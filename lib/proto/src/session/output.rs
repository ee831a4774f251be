//! What a session tells its driver.

use super::OUTPUTS_MAX;
use crate::close::CloseReason;
use crate::control::{
    AgentFacts, AgentStats, Bye, ControlError, ControlMessage, Drain, Grant, Rotate,
};
use crate::token::Digest;

/// What the driver has to do or to know.
#[derive(Debug)]
pub enum Output {
    /// Write this message on the control stream.
    Send(ControlMessage),
    /// Hub: the agent said HELLO and was granted its targets.
    Established(AgentFacts),
    /// Agent: this may be reached from now on.
    Granted(Grant),
    /// Agent: connect elsewhere first, then leave.
    Drain(Drain),
    /// Agent: store this token, then call [`Session::rotated`].
    Rotate(RotateOutput),
    /// Hub: the agent stored the token of this digest.
    Rotated(Digest),
    /// Hub: what the agent measured.
    Stats(AgentStats),
    /// A BEAT came back after this many ms.
    Rtt {
        /// Round trip, ms.
        ms: u64,
    },
    /// Data channels and certificates: passed on as they are.
    Other(ControlMessage),
    /// The peer said BYE. Last output.
    Bye(Bye),
    /// No byte for the limit. Last output.
    Dead {
        /// Silence seen, ms.
        silent_ms: u64,
    },
    /// The peer broke the protocol; BYE was queued before this. Last output.
    Violation(Violation),
}

/// A [`Rotate`] with a `Debug` that hides the token.
pub struct RotateOutput(pub Rotate);

/// How a peer broke the protocol of the control stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Bytes that are no control messages.
    #[error(transparent)]
    Malformed(#[from] ControlError),
    /// A message that this end never receives, or not yet, or not again.
    #[error("{name} is out of place")]
    OutOfPlace {
        /// Which message.
        name: &'static str,
    },
    /// A message of a capability that was not negotiated.
    #[error("{name} was not negotiated")]
    NotNegotiated {
        /// Which message.
        name: &'static str,
    },
    /// The peer sends faster than allowed.
    #[error("more than {max} {what} in a second")]
    Rate {
        /// What was counted.
        what: &'static str,
        /// The limit.
        max: u32,
    },
    /// HELLO or GRANT did not come in time.
    #[error("{name} did not come within {after_ms} ms")]
    Late {
        /// Which message.
        name: &'static str,
        /// The limit, ms.
        after_ms: u64,
    },
    /// More outputs wait than allowed.
    #[error("more than {OUTPUTS_MAX} messages wait to be handled")]
    Backlog,
}

/// A verb that cannot be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerbError {
    /// The session is over.
    #[error("the session is over")]
    Closed,
    /// The other end cannot do it.
    #[error("the other end did not offer this capability")]
    NotNegotiated,
    /// HELLO and GRANT are not through yet, or this end never does it.
    #[error("not at this point of the session, or not from this end")]
    OutOfPlace,
}

impl Violation {
    /// What both ends record.
    pub fn close_reason(&self) -> CloseReason {
        match self {
            Violation::Rate { .. } | Violation::Backlog => CloseReason::RateViolation,
            Violation::Late { .. } => CloseReason::HelloTimeout,
            _ => CloseReason::Protocol,
        }
    }
}

impl core::fmt::Debug for RotateOutput {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Rotate(from {} s)", self.0.not_before_unix_s)
    }
}
