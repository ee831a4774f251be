//! Whether certificates are those of a pair: signer, time, usage, key.

use culvert_net::crypto::sha256;
use culvert_pki::{Key, is_p256};
use culvert_proto::pair::{RendezvousId, Role};
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::Chain;

/// Longest certificate: what the relay reads of a preface.
const CERTIFICATE_BYTES_MAX: usize = 2_048;

/// What is wrong with the certificates of a pair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No certificate, or a damaged one.
    #[error("no readable certificate")]
    Unreadable,
    /// Longer than a preface can carry.
    #[error("a certificate of {bytes} bytes; a relay reads {CERTIFICATE_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// More or fewer certificates than a certificate and its CA.
    #[error("the chain is not one certificate and its CA")]
    ChainLength,
    /// More than one CA.
    #[error("more than one CA; a pair has exactly one")]
    SeveralCas,
    /// What should be the CA may not sign.
    #[error("the CA certificate is none: basic constraints or key usage do not let it sign")]
    NotACa,
    /// A key that is not ECDSA P-256.
    #[error("the certificate holds a key that is not ECDSA P-256")]
    KeyKind,
    /// Another CA signed it.
    #[error("the certificate was not signed by this CA; it names {issuer:?}")]
    Signer {
        /// Whom it names.
        issuer: String,
    },
    /// Its time has not come.
    #[error("the certificate is valid from unix time {from_unix_s} only; is the clock right?")]
    Early {
        /// Its beginning.
        from_unix_s: u64,
    },
    /// Its time is over.
    #[error("the certificate expired at unix time {until_unix_s}")]
    Expired {
        /// Its end.
        until_unix_s: u64,
    },
    /// It is for the other side, or for something else.
    #[error("the certificate is not one of a {role}: extended key usage {wanted} is missing")]
    Usage {
        /// Whose it should be.
        role: &'static str,
        /// The usage that is missing.
        wanted: &'static str,
    },
    /// A side's certificate that could sign others.
    #[error("the certificate of a side is a CA itself")]
    LeafIsCa,
    /// The key is another's.
    #[error("key and certificate do not go together")]
    Key,
    /// Another pair's CA.
    #[error("the CA has info hash {seen}; expected was {wanted}")]
    InfoHash {
        /// The hash expected.
        wanted: RendezvousId,
        /// The hash seen.
        seen: RendezvousId,
    },
}

/// From when until when a chain may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its beginning, unix s.
    pub from_unix_s: u64,
    /// Its end, unix s.
    pub until_unix_s: u64,
}

/// The info hash of a CA certificate.
#[must_use]
pub fn info_hash(ca_der: &[u8]) -> RendezvousId {
    RendezvousId(sha256(ca_der))
}

/// Whether `role` may show this chain at this time.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check_chain(chain: &Chain, role: Role, now_unix_s: u64) -> Result<Validity, Fault> {
    check_ca(&chain.ca_der)?;
    let (ca, leaf) = (parse(&chain.ca_der)?, parse(&chain.leaf_der)?);
    if !is_p256(leaf.public_key().raw) {
        return Err(Fault::KeyKind);
    }
    let signed = leaf.issuer() == ca.subject()
        && leaf.signature_algorithm.algorithm == OID_SIG_ECDSA_WITH_SHA256
        && leaf.verify_signature(Some(ca.public_key())).is_ok();
    if !signed {
        return Err(Fault::Signer {
            issuer: leaf.issuer().to_string(),
        });
    }
    if leaf.is_ca() {
        return Err(Fault::LeafIsCa);
    }
    check_usage(&leaf, role)?;
    let (ca, leaf) = (validity(&ca), validity(&leaf));
    let both = Validity {
        from_unix_s: ca.from_unix_s.max(leaf.from_unix_s),
        until_unix_s: ca.until_unix_s.min(leaf.until_unix_s),
    };
    if now_unix_s < both.from_unix_s {
        let from_unix_s = both.from_unix_s;
        return Err(Fault::Early { from_unix_s });
    }
    if now_unix_s > both.until_unix_s {
        let until_unix_s = both.until_unix_s;
        return Err(Fault::Expired { until_unix_s });
    }
    Ok(both)
}

/// Whether it may sign the sides of a pair. Its validity is not looked at.
pub(crate) fn check_ca(der: &[u8]) -> Result<(), Fault> {
    let ca = parse(der)?;
    let signs = match ca.key_usage() {
        Ok(usage) => usage.is_some_and(|usage| usage.value.key_cert_sign()),
        Err(_) => false,
    };
    if !ca.is_ca() || !signs || ca.verify_signature(None).is_err() {
        return Err(Fault::NotACa);
    }
    if !is_p256(ca.public_key().raw) {
        return Err(Fault::KeyKind);
    }
    Ok(())
}

/// Whether the certificate is for this key.
pub(crate) fn check_key(certificate_der: &[u8], key: &Key) -> Result<(), Fault> {
    let certificate = parse(certificate_der)?;
    if certificate.public_key().raw == key.spki_der() {
        return Ok(());
    }
    Err(Fault::Key)
}

fn check_usage(leaf: &X509Certificate<'_>, role: Role) -> Result<(), Fault> {
    let usage = leaf.extended_key_usage().ok().flatten();
    let (wanted, has) = match role {
        Role::Bridge => ("serverAuth", usage.is_some_and(|u| u.value.server_auth)),
        Role::Broker => ("clientAuth", usage.is_some_and(|u| u.value.client_auth)),
    };
    if has {
        return Ok(());
    }
    let role = role.as_str();
    Err(Fault::Usage { role, wanted })
}

pub(crate) fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp());
    Validity {
        from_unix_s: seconds(certificate.validity().not_before).unwrap_or(0),
        until_unix_s: seconds(certificate.validity().not_after).unwrap_or(0),
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Fault> {
    let bytes = der.len();
    if bytes > CERTIFICATE_BYTES_MAX {
        return Err(Fault::TooLong { bytes });
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Fault::Unreadable),
    }
}
