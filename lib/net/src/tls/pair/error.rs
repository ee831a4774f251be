//! Why there is no pair, and whose doing it was.

use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error, OtherError};

use super::{CHAIN_MAX, Side};

/// Why a handshake between two sides of a pair failed.
#[derive(Debug, thiserror::Error)]
pub enum PairTlsError {
    /// We do not accept the peer's certificate.
    #[error("the other side's certificate is refused here: {0}")]
    Refused(Refused),
    /// The peer does not accept ours.
    #[error(
        "the other side refused our certificate ({0}): see that both sides have certificates of \
         the same CA, for their own role, and that both clocks are right"
    )]
    RefusedByPeer(String),
    /// Nothing that both speak.
    #[error(
        "the other side speaks none of the protocols of a pair: see that a bridge and a broker \
         meet, of versions that know each other"
    )]
    Protocol,
    /// It broke, or something else was spoken.
    #[error("the end-to-end TLS failed: {0}")]
    Broken(String),
    /// Nothing came.
    #[error("the end-to-end TLS took longer than {0:?}: look at the other side and at the path")]
    Silent(Duration),
}

/// What is wrong with the certificate of a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It showed none.
    #[error("it showed none; both sides need one")]
    Absent,
    /// Signed by somebody else.
    #[error("it is not signed by this pair's CA; give both sides certificates of one CA")]
    OtherCa,
    /// Not valid now.
    #[error("it is expired or not yet valid; renew it, and check both clocks")]
    Time,
    /// It is not for this role.
    #[error(
        "it does not carry the usage that a {0} needs; do not swap the two sides' certificates"
    )]
    Usage(&'static str),
    /// The chain is too long.
    #[error("it shows {0} certificates; at most {CHAIN_MAX} are read")]
    Length(usize),
    /// Its key is of a kind that is not accepted.
    #[error("a key in its chain is none of ECDSA P-256, ECDSA P-384 and Ed25519")]
    Key,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Refused {
    pub(super) fn usage(peer: Side) -> Refused {
        Refused::Usage(peer.as_str())
    }

    /// What webpki says, in our words.
    pub(super) fn of(error: &Error) -> Refused {
        let Error::InvalidCertificate(error) = error else {
            return Refused::Other(error.to_string());
        };
        match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Refused::OtherCa,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Refused::Time,
            CertificateError::Other(OtherError(inner)) => match inner.downcast_ref::<Refused>() {
                Some(known) => known.clone(),
                None => Refused::Other(inner.to_string()),
            },
            other => Refused::Other(other.to_string()),
        }
    }
}

/// The error of a handshake or of a stream behind it, taken apart.
#[must_use]
pub fn explain(error: &io::Error) -> PairTlsError {
    let Some(tls) = error.get_ref().and_then(|it| it.downcast_ref::<Error>()) else {
        return PairTlsError::Broken(error.to_string());
    };
    match tls {
        Error::NoCertificatesPresented => PairTlsError::Refused(Refused::Absent),
        Error::InvalidCertificate(_) => PairTlsError::Refused(Refused::of(tls)),
        Error::NoApplicationProtocol
        | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => PairTlsError::Protocol,
        Error::AlertReceived(alert) if blames_certificate(*alert) => {
            PairTlsError::RefusedByPeer(format!("{alert:?}"))
        }
        other => PairTlsError::Broken(other.to_string()),
    }
}

fn blames_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::CertificateRequired
            | A::UnknownCA
            | A::AccessDenied
    )
}
