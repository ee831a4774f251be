//! What went wrong with TLS, and whose doing it was.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use culvert_proto::close::CloseReason;

use super::verify::SpkiPin;

/// Why TLS could not be set up or a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds no PEM block of the kind it must hold.
    #[error("{path}: holds no {wanted}; give a PEM file with at least one")]
    Empty {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
    },
    /// A file's content is not usable.
    #[error("{path}: {problem}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The system has no trusted root certificates.
    #[error("this system has no trusted CA certificates: install them, or give a CA file or a pin")]
    NoSystemRoots,
    /// The name to verify is no DNS name or address.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Name(String),
    /// The peer's certificate is not acceptable.
    #[error("{0}")]
    Certificate(Box<SeenCertificate>),
    /// The peer refused our certificate, or demands one.
    #[error(
        "the other side refused our client certificate or wants one ({0}): check the client \
         certificate and key, and that its CA is the one that side trusts"
    )]
    ClientCertificate(String),
    /// The peer closed or spoke something else.
    #[error("TLS handshake failed: {0}")]
    Handshake(String),
    /// The handshake took longer than its deadline.
    #[error("TLS handshake took longer than {seconds} s")]
    Timeout {
        /// The deadline.
        seconds: u64,
    },
}

impl TlsError {
    pub(crate) fn read(path: &Path, source: io::Error) -> TlsError {
        TlsError::Read {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn bad(path: &Path, problem: impl fmt::Display) -> TlsError {
        TlsError::Bad {
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }

    /// The word for it when a hub was dialled.
    #[must_use]
    pub fn close_reason(&self) -> CloseReason {
        match self {
            TlsError::Certificate(seen) => match seen.problem {
                Problem::UnknownIssuer | Problem::Pin(_) => CloseReason::TlsUnknownCa,
                Problem::Name => CloseReason::TlsName,
                Problem::Time => CloseReason::TlsExpired,
                Problem::Other(_) => CloseReason::TlsFailed,
            },
            TlsError::Timeout { .. } => CloseReason::HubTimeout,
            _ => CloseReason::TlsFailed,
        }
    }

    /// Takes a handshake's error apart.
    pub(crate) fn from_handshake(error: &io::Error) -> TlsError {
        let Some(tls) = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>())
        else {
            return TlsError::Handshake(error.to_string());
        };
        if let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) = tls
            && let Some(seen) = other.0.downcast_ref::<SeenCertificate>()
        {
            return TlsError::Certificate(Box::new(seen.clone()));
        }
        if let rustls::Error::AlertReceived(alert) = tls {
            use rustls::AlertDescription as A;
            if matches!(
                alert,
                A::CertificateRequired
                    | A::BadCertificate
                    | A::UnsupportedCertificate
                    | A::CertificateRevoked
                    | A::CertificateExpired
                    | A::CertificateUnknown
                    | A::UnknownCA
                    | A::AccessDenied
                    // Our chain names the right CA and was signed by another of the same name.
                    | A::DecryptError
            ) {
                return TlsError::ClientCertificate(format!("{alert:?}"));
            }
        }
        TlsError::Handshake(tls.to_string())
    }
}

/// A certificate that was shown and not accepted, with what one needs to decide about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenCertificate {
    /// What is wrong.
    pub problem: Problem,
    /// Who signed the topmost certificate shown.
    pub issuer: String,
    /// Whom the leaf names.
    pub subject: String,
    /// Hash of the leaf's public key.
    pub spki: SpkiPin,
    /// The name that was dialled.
    pub name: String,
}

/// What is wrong with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No trusted CA signed it.
    UnknownIssuer,
    /// It is for other names.
    Name,
    /// Its time is over or has not come.
    Time,
    /// Its key is not the pinned one.
    Pin(SpkiPin),
    /// Anything else, in the verifier's words.
    Other(String),
}

impl fmt::Display for SeenCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SeenCertificate {
            problem,
            issuer,
            subject,
            spki,
            name,
        } = self;
        match problem {
            Problem::UnknownIssuer => write!(
                f,
                "certificate of {name} is signed by {issuer:?}, which is not trusted here \
                 (public key {spki}): either a box on the way opens the TLS, then give its CA; \
                 or the hub has a private CA, then give that CA, or pin this key after comparing it"
            ),
            Problem::Name => write!(
                f,
                "certificate is for {subject:?}, not for {name} (issuer {issuer:?}, public key {spki}): \
                 check the address, or add the name to the certificate"
            ),
            Problem::Time => write!(
                f,
                "certificate of {name} is expired or not yet valid (issuer {issuer:?}, public key \
                 {spki}): renew it, and check the clock of this machine"
            ),
            Problem::Pin(wanted) => write!(
                f,
                "saw {issuer:?} with public key {spki}, wanted pin {wanted}: something opens the \
                 TLS on the way, or the hub's key changed and the pin is old"
            ),
            Problem::Other(text) => write!(
                f,
                "certificate of {name} is not acceptable: {text} (issuer {issuer:?}, public key {spki})"
            ),
        }
    }
}

impl std::error::Error for SeenCertificate {}
