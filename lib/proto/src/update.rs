//! What control and data planes tell each other (P8): snapshot, updates, reports.
//!
//! The encoding is canonical: one value has one form, and those bytes are what is signed.

mod access;
mod cluster;
mod codec;
mod file;
mod report;
mod rotation;
mod route;
mod sign_in;
mod snapshot;
mod state;
mod step;

use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;

use crate::id::{ClusterId, Epoch, Generation};
use crate::token::{Digest, TokenText};

pub use crate::registry::Policy;
pub use access::{Access, Grant, Mode, Tier, UserClaim};
pub use codec::DecodeError;
pub use file::{FileError, SIGNATURE_BYTES, SignedFrame};
pub use report::{Ack, Report, RotatedFact, SessionFact, TokenUse};
pub use route::{
    EVERY_SERVICE, NameError, PersonalToken, Route, RouteKind, SERVICE_NAME_BYTES_MAX, ServiceName,
    SniPattern,
};
pub use sign_in::{CookieKey, Ended, SignIn};
pub use state::{ApplyError, State};

/// Everything a data plane has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number.
    pub generation: Generation,
    /// Which hub it belongs to; a data plane keeps to one.
    pub hub_id: Arc<str>,
    /// When control made it, wall clock ms.
    pub issued_unix_ms: u64,
    /// What holds for all clusters.
    pub settings: Settings,
    /// In rising order of id, each id once.
    pub clusters: Vec<Arc<ClusterState>>,
    /// Who signed out everywhere.
    pub ended: Arc<Ended>,
}

/// The step from one generation to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// The number after the step; the one before is one less.
    pub generation: Generation,
    /// When control made it, wall clock ms.
    pub issued_unix_ms: u64,
    /// In order.
    pub changes: Vec<Change>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The cluster is as given, whether it was known or not.
    Upsert(Arc<ClusterState>),
    /// The cluster is gone.
    Remove(ClusterId),
    /// The settings are as given.
    Settings(Settings),
    /// Every session of the subject below the epoch ends.
    End {
        /// Whose.
        subject: Arc<str>,
        /// When it ended, wall clock ms.
        epoch: u64,
    },
}

/// What holds for all clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Requests a second for the whole data plane; 0 = no limit.
    pub rate_per_second: u32,
    /// Age at which a snapshot is no longer honoured, s; 0 = none.
    pub snapshot_age_max_s: u32,
    /// How people are signed in; `None` = nobody is.
    pub sign_in: Option<Arc<SignIn>>,
    /// CA certificates (DER) whose agents are let in, the one that certifies listeners first.
    pub agent_cas: Vec<Bytes>,
}

/// One registered site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterState {
    /// Its id.
    pub id: ClusterId,
    /// Agents and requests are refused while false.
    pub enabled: bool,
    /// What a second agent does.
    pub policy: Policy,
    /// Live tokens.
    pub tokens: Vec<TokenHash>,
    /// Sessions accepted below it are dead.
    pub epoch_floor: Epoch,
    /// Streams of one session; 0 = [`crate::limits::STREAMS_DEFAULT`].
    pub streams_max: u32,
    /// Concurrent requests; 0 = no limit.
    pub requests_max: u32,
    /// Requests a second; 0 = no limit.
    pub rate_per_second: u32,
    /// Whether client `Impersonate-*` passes.
    pub allow_impersonation: bool,
    /// What stands behind the agents.
    pub target: Target,
    /// Name for people; never empty.
    pub name: Option<Arc<str>>,
    /// Free labels.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
    /// Ways to its services beside HTTP.
    pub routes: Vec<Route>,
    /// Who may ask for a service by name.
    pub personal_tokens: Vec<PersonalToken>,
    /// Which people may enter, and as whom.
    pub access: Access,
    /// Requests of machines leave audit records too.
    pub audit_tunnel: bool,
    /// Certificates of agents that were made before are dead, unix s; 0 = none is.
    pub certificates_from_unix_s: u64,
}

/// What stands behind the agents of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// How heads are treated.
    pub kind: TargetKind,
    /// The address expected to be the agent's own; `None` = whatever the agent serves (D-30).
    pub addr: Option<Arc<str>>,
}

/// Kind of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TargetKind {
    /// Any HTTP service.
    #[default]
    Http,
    /// A Kubernetes API server.
    Kube,
}

/// A live token, as its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenHash {
    /// SHA-256 of the token.
    pub digest: Digest,
    /// Public id.
    pub id: Arc<str>,
    /// End of its life, wall clock ms; `None` = no end.
    pub not_after_unix_ms: Option<u64>,
}

/// A token that the agents of a cluster should store (C-15). Never written to disk by a data
/// plane; no `Debug`.
pub struct Rotation {
    /// Whose agents.
    pub cluster: ClusterId,
    /// Public id of the new token.
    pub token_id: Arc<str>,
    /// From when it is valid, unix s.
    pub not_before_unix_s: u64,
    /// The token.
    pub token: TokenText,
}

/// One message of control to a data plane; the first bytes of a body tell which.
pub enum StateMessage {
    /// The whole state.
    Snapshot(Snapshot),
    /// One step.
    Update(Update),
    /// A token for agents.
    Rotation(Rotation),
}

impl StateMessage {
    /// Reads any message of control. Verify the signature over `body` first.
    pub fn decode(body: &Bytes) -> Result<StateMessage, DecodeError> {
        if body.starts_with(step::UPDATE_DOMAIN) {
            Update::decode(body).map(StateMessage::Update)
        } else if body.starts_with(rotation::ROTATION_DOMAIN) {
            Rotation::decode(body).map(StateMessage::Rotation)
        } else {
            Snapshot::decode(body).map(StateMessage::Snapshot)
        }
    }
}

impl TargetKind {
    /// The word in files, API and CLI.
    pub fn as_str(self) -> &'static str {
        match self {
            TargetKind::Http => "http",
            TargetKind::Kube => "kube",
        }
    }

    /// The kind of a word.
    pub fn from_word(word: &str) -> Option<TargetKind> {
        [TargetKind::Http, TargetKind::Kube]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }
}
