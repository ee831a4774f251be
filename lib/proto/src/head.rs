//! Which header fields travel (P12): heads are built from what passes, never edited.

mod check;
mod connection;
mod names;
mod request;
mod response;

use alloc::string::String;

use crate::close::CloseReason;

pub use check::{HeadFacts, check_request};
pub use connection::ConnectionTokens;
pub use names::{is_hop_by_hop, is_protected};
pub use request::{RequestRules, RouteKind, impersonation_value, request_field, request_trailer};
pub use response::{ResponseRules, response_field, response_trailer};

/// What happens to one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Copied into the new head.
    Pass,
    /// Left behind.
    Drop,
}

/// A head that must be refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// `Connection` names a field it must never remove.
    #[error("Connection names {0:?}, which it must not touch")]
    ConnectionNames(String),
    /// `Connection` is no list of tokens, or too long a one.
    #[error("Connection is not a list of at most 32 tokens")]
    Connection,
    /// No `Host`, or several, or one that differs from the target's authority.
    #[error("the request needs exactly one Host that agrees with its target")]
    Host,
    /// Several or odd `Transfer-Encoding`.
    #[error("Transfer-Encoding is not exactly one 'chunked'")]
    TransferEncoding,
    /// Several or impossible `Content-Length`.
    #[error("Content-Length is repeated or no number")]
    ContentLength,
    /// A byte that no request target may hold.
    #[error("the request target holds a space, a control byte or a byte over 0x7e")]
    Target,
    /// CONNECT, which only a proxy front serves.
    #[error("CONNECT is only for a proxy front, which this is not")]
    Method,
    /// A body where none may be.
    #[error("this request may not have a body")]
    Body,
    /// An upgrade request that is incomplete, double, or has a body.
    #[error("the upgrade request is incomplete, names two protocols, or has a body")]
    Upgrade,
    /// `Impersonate-*` asks for a name that nobody may take.
    #[error("{name} may not name a system identity")]
    Impersonation {
        /// The field.
        name: String,
    },
}

impl HeadError {
    /// The answer to give.
    pub fn close_reason(&self) -> CloseReason {
        match self {
            HeadError::TransferEncoding | HeadError::ContentLength | HeadError::Body => {
                CloseReason::BadFraming
            }
            HeadError::Impersonation { .. } => CloseReason::Forbidden,
            _ => CloseReason::BadHead,
        }
    }
}
