//! What stops a store.

use std::io;
use std::path::PathBuf;

use crate::authority::RequestError;
use crate::registration::PairId;
use crate::voucher::Refused;

use super::{DOCUMENT_BYTES_MAX, DOCUMENTS_MAX};

/// Why a store does not do what it was asked for. No text quotes a document.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No store.
    #[error("{seen:?} is no store: write file:/path or secret:NAMESPACE[/PREFIX]")]
    Form {
        /// The text seen.
        seen: String,
    },
    /// A kind of store that comes later.
    #[error(
        "stores in Vault or OpenBao (an https address and a token) come with a later version: \
         use file:/path or secret:NAMESPACE[/PREFIX]"
    )]
    Vault,
    /// Not a name that a document can have.
    #[error(
        "{seen:?} cannot name a document, a namespace or a prefix: lower-case letters, digits, inner hyphens"
    )]
    Name {
        /// The text seen.
        seen: String,
    },
    /// A file cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others can read or write it.
    #[error("{path}: mode {mode:04o} lets others in; run: chmod {wanted} {path}")]
    Mode {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they must be.
        wanted: &'static str,
    },
    /// Another user's.
    #[error("{path}: owned by uid {owner}, this process runs as uid {uid}; run as its owner")]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        uid: u32,
    },
    /// Another writer was first.
    #[error("{place}: {name} was changed by another process meanwhile; do it again")]
    Conflict {
        /// The store.
        place: String,
        /// The document.
        name: String,
    },
    /// Another writer holds the store too long.
    #[error("{path}: another process has held the lock for {seconds} s")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// A document is not what it must be.
    #[error("{name}: {problem}")]
    Damaged {
        /// The document.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A document is too long.
    #[error("{name}: over {DOCUMENT_BYTES_MAX} bytes, which no registration is")]
    TooLong {
        /// The document.
        name: String,
    },
    /// Too many documents.
    #[error("{place}: over {DOCUMENTS_MAX} pairs; use several stores")]
    TooMany {
        /// The store.
        place: String,
    },
    /// The Kubernetes API cannot be reached, or says what cannot be understood.
    #[error("{place}: {problem}")]
    Unreachable {
        /// The store.
        place: String,
        /// What was seen.
        problem: String,
    },
    /// The Kubernetes API refuses.
    #[error("{place}: the Kubernetes API answered {status} to {what}: {message}; {fix}")]
    Refused {
        /// The store.
        place: String,
        /// What was asked.
        what: String,
        /// The status.
        status: u16,
        /// What the API said.
        message: String,
        /// What to do.
        fix: &'static str,
    },
}

/// Why no certificate was handed out.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// No such pair.
    #[error("pair {id} is not registered")]
    Unknown {
        /// The pair.
        id: PairId,
    },
    /// The code may not be used.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The request is none.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The store does not do what it must.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl StoreError {
    pub(super) fn damaged(name: &str, problem: &impl ToString) -> StoreError {
        StoreError::Damaged {
            name: name.to_owned(),
            problem: problem.to_string(),
        }
    }
}
