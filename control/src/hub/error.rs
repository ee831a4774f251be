//! Why a decision is refused or cannot be recorded.

use culvert_proto::id::ClusterId;
use culvert_proto::limits::CLUSTERS_MAX;

use crate::connect::Over;
use crate::enrol::CaRefused;
use crate::registry::Refused;
use crate::registry::file::FileError;
use crate::store::StoreError;

/// Why the hub did not do it.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No such cluster.
    #[error("no cluster {0}")]
    NoCluster(ClusterId),
    /// The id is taken.
    #[error("cluster {0} is registered already")]
    Exists(ClusterId),
    /// The hub is full.
    #[error("{CLUSTERS_MAX} clusters are registered")]
    TooManyClusters,
    /// The registry file says otherwise, and wins.
    #[error("cluster {cluster}: {what} is set by the registry file {path}")]
    OwnedByFile {
        /// Which.
        cluster: ClusterId,
        /// Fields, or all of it.
        what: String,
        /// The file.
        path: String,
    },
    /// The registry file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A rule forbids it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It cannot be recorded; nothing changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// As many API tokens as are allowed.
    #[error("as many API tokens as are allowed are live")]
    TooManyApiTokens,
    /// As many bootstrap tokens as are allowed.
    #[error("as many bootstrap tokens as are allowed are live")]
    TooManyEnrolTokens,
    /// The CAs of agents are not changed so.
    #[error(transparent)]
    Ca(#[from] CaRefused),
    /// A CA or a certificate cannot be made or read.
    #[error("{0}")]
    Certificate(String),
    /// The key of a CA was sealed by a control process with another signing key.
    #[error(
        "agent CA {0}: its key was sealed under another signing.key than the one in --state-dir"
    )]
    SealedElsewhere(String),
    /// No such API token.
    #[error("no API token {0}")]
    NoApiToken(String),
    /// As many agents as are allowed ask to connect, from this address or in all.
    #[error("as many requests to connect as are allowed wait for a decision")]
    TooManyConnectRequests,
    /// No such request, or not with this secret.
    #[error("no such request to connect")]
    NoConnectRequest,
    /// The request does not wait any more.
    #[error(transparent)]
    Over(#[from] Over),
    /// Another control process decided in the midst of this.
    #[error("another control process changed the registry at the same time")]
    Overtaken,
    /// No agent that could take a token over its tunnel is connected.
    #[error("no connected agent of cluster {0} can take a token over its tunnel")]
    NobodyToDeliverTo(ClusterId),
    /// Too many tokens wait for delivery.
    #[error("too many tokens wait for delivery")]
    TooManyDeliveries,
}
