//! Control messages of stream 1 (P7): `type u8 | flags u8 | length u16 | body`.

mod decode;
mod encode;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::channel::Form;
use crate::close::CloseReason;
use crate::id::Epoch;
use crate::open::DialCode;
use crate::token::{Digest, TokenText};

pub use decode::{ControlDecoder, ControlError};
pub use encode::ControlEncodeError;

/// Longest text in CHANNEL_FAIL and BYE; longer is cut.
pub const CONTROL_TEXT_BYTES_MAX: usize = 512;
/// Tickets in one message.
pub const TICKETS_MAX: usize = 255;
/// Addresses in one DRAIN.
pub const DRAIN_ADDRESSES_MAX: usize = 16;

/// One message on the control stream.
pub enum ControlMessage {
    /// Both ways, every 5 s; answered by ECHO.
    Beat {
        /// Returned as it is.
        nonce: u64,
    },
    /// Answer to BEAT.
    Echo {
        /// The BEAT's.
        nonce: u64,
    },
    /// Agent to hub, first.
    Hello(AgentFacts),
    /// Hub to agent: what this session may reach.
    Grant(Grant),
    /// Hub to agent: open this many data channels.
    Tickets(Tickets),
    /// Agent to hub: a data channel could not be opened.
    ChannelFail(ChannelFail),
    /// Hub to agent: move elsewhere.
    Drain(Drain),
    /// Hub to agent: store this token.
    Rotate(Rotate),
    /// Agent to hub: the token is stored.
    Rotated {
        /// SHA-256 of the stored token.
        digest: Digest,
    },
    /// Agent to hub: sign this certificate request.
    Renew {
        /// PKCS#10, DER.
        csr: Vec<u8>,
    },
    /// Hub to agent: the new certificate.
    Cert {
        /// PEM chain, leaf first; empty where only the CAs are news.
        chain: String,
        /// PEM bundle of trusted CAs.
        ca_bundle: String,
    },
    /// Both ways: the session ends.
    Bye(Bye),
    /// Agent to hub, every 10 s.
    Stats(AgentStats),
}

/// What an agent tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentFacts {
    /// Its version (semver).
    pub version: String,
    /// Names of the targets it serves.
    pub targets: Vec<String>,
    /// Streams it accepts at once.
    pub streams_max: Option<u32>,
    /// Where it runs.
    pub region: String,
    /// Free labels.
    pub labels: Vec<(String, String)>,
    /// Operating system and architecture.
    pub platform: String,
}

/// What a session may reach; every open is checked against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The session's epoch.
    pub epoch: Epoch,
    /// Allowed target names.
    pub targets: Vec<Arc<str>>,
}

/// One-time rights to open a data channel.
#[derive(Clone)]
pub struct Tickets {
    /// Their life, s.
    pub ttl_s: u32,
    /// What the channels have to run in.
    pub form: Form,
    /// At most 255.
    pub tickets: Vec<Ticket>,
}

/// One ticket. The key is a secret: no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Public id.
    pub id: [u8; 16],
    /// HMAC key.
    pub key: [u8; 32],
}

/// A data channel that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelFail {
    /// The ticket's id.
    pub id: [u8; 16],
    /// Why.
    pub code: DialCode,
    /// Text for logs.
    pub reason: String,
}

/// Advice to move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drain {
    /// The agent opens the new session at a random point of this window, ms.
    pub reconnect_within_ms: u32,
    /// When this end cuts what is left, ms from now.
    pub deadline_ms: u32,
    /// Where to go; empty = the same address.
    pub addresses: Vec<String>,
}

/// A new token for the agent. No `Debug`.
pub struct Rotate {
    /// From when it is valid, unix s.
    pub not_before_unix_s: u64,
    /// The token.
    pub token: TokenText,
}

/// The end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bye {
    /// Why.
    pub reason: ByeReason,
    /// Text for logs.
    pub text: String,
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ByeReason {
    /// The process stops.
    Shutdown = 0,
    /// A newer session took over.
    Replaced = 1,
    /// The cluster was revoked.
    Revoked = 2,
    /// The end of a drain.
    Draining = 3,
    /// The other side broke the protocol.
    Protocol = 4,
    /// A second agent is refused.
    Duplicate = 5,
    /// Too much for this end.
    Overload = 6,
}

/// What an agent measures. `None` = not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentStats {
    /// Median time to connect to a target, µs.
    pub dial_p50_us: Option<u32>,
    /// 99th percentile of it, µs.
    pub dial_p99_us: Option<u32>,
    /// Failed dials and broken answers since start.
    pub target_errors: Option<u64>,
    /// Idle data channels.
    pub pool_idle: Option<u32>,
    /// Data channels the pool aims at.
    pub pool_wanted: Option<u32>,
    /// Streams open now.
    pub streams: Option<u32>,
    /// Kernel features in use, as one word each.
    pub kernel_features: String,
}

impl ControlMessage {
    /// The message's name in logs.
    pub fn name(&self) -> &'static str {
        match self {
            ControlMessage::Beat { .. } => "BEAT",
            ControlMessage::Echo { .. } => "ECHO",
            ControlMessage::Hello(_) => "HELLO",
            ControlMessage::Grant(_) => "GRANT",
            ControlMessage::Tickets(_) => "TICKETS",
            ControlMessage::ChannelFail(_) => "CHANNEL_FAIL",
            ControlMessage::Drain(_) => "DRAIN",
            ControlMessage::Rotate(_) => "ROTATE",
            ControlMessage::Rotated { .. } => "ROTATED",
            ControlMessage::Renew { .. } => "RENEW",
            ControlMessage::Cert { .. } => "CERT",
            ControlMessage::Bye(_) => "BYE",
            ControlMessage::Stats(_) => "STATS",
        }
    }
}

/// The name only: messages may carry secrets.
impl fmt::Debug for ControlMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.key);
    }
}

impl ByeReason {
    const ALL: [ByeReason; 7] = [
        ByeReason::Shutdown,
        ByeReason::Replaced,
        ByeReason::Revoked,
        ByeReason::Draining,
        ByeReason::Protocol,
        ByeReason::Duplicate,
        ByeReason::Overload,
    ];

    /// The reason of a wire byte.
    pub fn from_u8(code: u8) -> Option<ByeReason> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The close reason both ends record.
    pub fn close_reason(self) -> CloseReason {
        match self {
            ByeReason::Shutdown => CloseReason::Shutdown,
            ByeReason::Replaced => CloseReason::Replaced,
            ByeReason::Revoked => CloseReason::Revoked,
            ByeReason::Draining => CloseReason::Draining,
            ByeReason::Protocol => CloseReason::Protocol,
            ByeReason::Duplicate => CloseReason::Duplicate,
            ByeReason::Overload => CloseReason::Overload,
        }
    }

    /// The BYE to send when a session ends for `reason`.
    pub fn for_close(reason: CloseReason) -> ByeReason {
        match reason {
            CloseReason::Replaced | CloseReason::StaleEpoch => ByeReason::Replaced,
            CloseReason::Revoked | CloseReason::Disabled | CloseReason::TokenRevoked => {
                ByeReason::Revoked
            }
            CloseReason::Draining | CloseReason::DrainDeadline | CloseReason::AgentDraining => {
                ByeReason::Draining
            }
            CloseReason::Protocol | CloseReason::RateViolation => ByeReason::Protocol,
            CloseReason::Duplicate | CloseReason::HoldDown => ByeReason::Duplicate,
            CloseReason::Overload
            | CloseReason::Paced
            | CloseReason::BudgetCut
            | CloseReason::TooManySessions => ByeReason::Overload,
            _ => ByeReason::Shutdown,
        }
    }
}
