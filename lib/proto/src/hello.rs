//! The agent's request for a carrier and the hub's answer (P3).

mod answer;
mod fields;
mod request;

use alloc::string::String;
use core::fmt;
use core::ops::BitAnd;

use crate::close::CloseReason;
use crate::id::{ClusterId, InstanceId};

pub use answer::{AnswerError, HelloAnswer};
pub use request::{HelloRequest, RadarFacts, request_headers};

/// The raw upgrade, and the version of the wire it names.
pub const UPGRADE_NATIVE: &str = "culvert/1";
/// The fallback upgrade.
pub const UPGRADE_WEBSOCKET: &str = "websocket";
/// The sub-protocol that makes a WebSocket a culvert/1 carrier.
pub const SUBPROTOCOL: &str = "culvert.v1";
/// Oldest protocol version spoken here.
pub const PROTOCOL_VERSION_MIN: u32 = 1;
/// Newest protocol version spoken here.
pub const PROTOCOL_VERSION_MAX: u32 = 1;
/// Agent paths; all of them take culvert/1.
pub const AGENT_PATHS: [&str; 3] = ["/agent", "/connect", CERTIFIED_PATH];
/// The agent path of the listener where the client certificate is the identity.
pub const CERTIFIED_PATH: &str = "/api/agents/connect";
/// Where an agent changes its bootstrap token for a certificate.
pub const REGISTER_PATH: &str = "/api/agents/register";

/// Names of header fields, in lower case.
pub mod header {
    /// UUID of the agent process.
    pub const INSTANCE: &str = "culvert-instance";
    /// Version of the agent.
    pub const VERSION: &str = "culvert-version";
    /// Capabilities, comma-separated.
    pub const CAPS: &str = "culvert-caps";
    /// Cluster the agent believes it belongs to.
    pub const CLUSTER: &str = "culvert-cluster";
    /// Epoch of the accepted session.
    pub const EPOCH: &str = "culvert-epoch";
    /// `<beat s>,<dead s>`.
    pub const BEAT: &str = "culvert-beat";
    /// Why a request was refused.
    pub const ERROR: &str = "culvert-error";
    /// Request id between hub, agent and service.
    pub const REQUEST_ID: &str = "x-request-id";
}

/// How the bytes of a carrier travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CarrierKind {
    /// culvert/1 on the raw connection.
    Native,
    /// culvert/1 in BINARY messages of a WebSocket.
    WebSocket,
    /// A Radar connector: yamux in a WebSocket, no control stream, no stream headers.
    Radar,
}

/// Capabilities both ends may use when both name them. Unknown names are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caps(u8);

/// What an agent says about itself when it connects; the same on both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentHello {
    /// The agent process; `None` on Radar carriers only.
    pub instance: Option<InstanceId>,
    /// Its version; empty when unknown.
    pub version: String,
    /// What it can do.
    pub caps: Caps,
    /// The cluster it claims; must equal the credential's.
    pub cluster: Option<ClusterId>,
}

/// Why a request for a carrier is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// A browser asks for an agent path.
    #[error("agent paths refuse requests with {0}; agents send none")]
    Browser(&'static str),
    /// Not a GET with `Connection: Upgrade`.
    #[error("this path is for agents: GET with Connection: Upgrade")]
    NotUpgrade,
    /// No common upgrade.
    #[error(
        "agent offers {offered:?}; this hub speaks culvert/{PROTOCOL_VERSION_MIN} to \
         culvert/{PROTOCOL_VERSION_MAX} and websocket with culvert.v1: upgrade the older end"
    )]
    NoCommonVersion {
        /// The agent's offer, cut to 128 bytes.
        offered: String,
    },
    /// A field that must come once came twice.
    #[error("field {0} comes twice")]
    Repeated(&'static str),
    /// A field with an unusable value.
    #[error("field {name} is unusable: {why}")]
    Field {
        /// Which.
        name: &'static str,
        /// What is wrong, without the value.
        why: &'static str,
    },
    /// The credential is malformed.
    #[error("Authorization is not 'Bearer <token>' with a token of 8 to 512 characters")]
    Credential,
    /// Claimed cluster and credential differ.
    #[error("the agent claims cluster {claimed}; its token belongs to another")]
    ClusterMismatch {
        /// The claim, cut to 64 bytes.
        claimed: String,
    },
}

// === impl CarrierKind ===

impl CarrierKind {
    /// The word in reports and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            CarrierKind::Native => "culvert/1",
            CarrierKind::WebSocket => "culvert/1+websocket",
            CarrierKind::Radar => "radar",
        }
    }

    /// Whether streams start with our header and stream 1 is the control stream.
    pub fn is_culvert(self) -> bool {
        self != CarrierKind::Radar
    }
}

// === impl Caps ===

impl Caps {
    /// Data channels.
    pub const CHANNEL: Caps = Caps(1);
    /// STATS messages.
    pub const STATUS: Caps = Caps(2);
    /// DRAIN messages.
    pub const DRAIN: Caps = Caps(4);
    /// Token rotation through the session.
    pub const ROTATE: Caps = Caps(8);
    /// Certificate renewal through the session.
    pub const RENEW: Caps = Caps(16);
    /// Streams that start with [`WINDOW_OWN_INITIAL_BYTES`](crate::limits::WINDOW_OWN_INITIAL_BYTES)
    /// of credit both ways.
    pub const SMALL_WINDOW: Caps = Caps(32);
    /// Data channels without TLS also for services whose payload is not sealed: the network
    /// between the two is trusted.
    pub const PLAIN_CHANNEL: Caps = Caps(64);

    const NAMES: [(&'static str, Caps); 7] = [
        ("channel", Caps::CHANNEL),
        ("status", Caps::STATUS),
        ("drain", Caps::DRAIN),
        ("rotate", Caps::ROTATE),
        ("renew", Caps::RENEW),
        ("window-32k", Caps::SMALL_WINDOW),
        ("plain-channel", Caps::PLAIN_CHANNEL),
    ];

    /// Reads a comma-separated list; unknown names are ignored.
    pub fn parse(list: &str) -> Caps {
        let known = |word: &str| Self::NAMES.iter().find(|(name, _)| *name == word);
        let words = list.split(',').map(str::trim);
        words
            .filter_map(known)
            .fold(Caps::default(), |all, (_, cap)| all.with(*cap))
    }

    /// Both sets together.
    #[must_use]
    pub fn with(self, more: Caps) -> Caps {
        Caps(self.0 | more.0)
    }

    /// Whether all of `wanted` is in this set.
    pub fn has(self, wanted: Caps) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

impl BitAnd for Caps {
    type Output = Caps;
    fn bitand(self, other: Caps) -> Caps {
        Caps(self.0 & other.0)
    }
}

impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (name, cap) in Self::NAMES {
            if self.has(cap) {
                write!(f, "{comma}{name}")?;
                comma = ",";
            }
        }
        Ok(())
    }
}

// === impl HelloError ===

impl HelloError {
    /// The reason to log and to answer with.
    pub fn close_reason(&self) -> CloseReason {
        match self {
            HelloError::Browser(_) => CloseReason::Forbidden,
            HelloError::NotUpgrade | HelloError::NoCommonVersion { .. } => {
                CloseReason::NoCommonVersion
            }
            HelloError::Repeated(_) | HelloError::Field { .. } => CloseReason::BadHead,
            HelloError::Credential => CloseReason::Unauthenticated,
            HelloError::ClusterMismatch { .. } => CloseReason::ClusterMismatch,
        }
    }
}

/// The status for a refused carrier. Radar connectors know 401 and 500 only (W-2).
pub fn refusal_status(kind: Option<CarrierKind>, reason: CloseReason) -> u16 {
    let status = crate::answer::error_status(reason);
    match kind {
        Some(CarrierKind::Radar) if status != 401 => 500,
        _ => status,
    }
}
