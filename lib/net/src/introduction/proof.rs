//! Whether a preface proves what it says.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm,
};
use culvert_proto::pair::{Preface, ProofKind, Role, signed_bytes};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA,
    OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::crypto::{constant_time_eq, sha256};

/// What does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// X is not what the id is the hash of.
    #[error("the id is not the SHA-256 of what is shown")]
    Id,
    /// Not a certificate, or more than one.
    #[error("a certificate does not parse")]
    Encoding,
    /// The CA did not sign the certificate.
    #[error("the certificate is not signed by the CA shown")]
    Issuer,
    /// Expired, or not valid yet.
    #[error("the certificate is expired or not valid yet")]
    Time,
    /// A broker's for a bridge, or the other way round.
    #[error("the certificate is not for this role")]
    Usage,
    /// A key of another kind.
    #[error("the certificate's key is neither ECDSA P-256 nor Ed25519")]
    Key,
    /// Not over this challenge, or not by this key.
    #[error("the signature does not hold")]
    Signature,
}

impl ProofError {
    /// The word in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ProofError::Id => "id",
            ProofError::Encoding => "encoding",
            ProofError::Issuer => "issuer",
            ProofError::Time => "time",
            ProofError::Usage => "usage",
            ProofError::Key => "key",
            ProofError::Signature => "signature",
        }
    }
}

/// Checks that `preface` answers `challenge` and proves its id, at `now_s` of the Unix clock. An
/// open join has nothing to prove.
///
/// # Errors
/// What does not hold.
pub fn verify(preface: &Preface, challenge: &[u8; 32], now_s: i64) -> Result<(), ProofError> {
    if preface.proof == ProofKind::Open {
        return Ok(());
    }
    if !constant_time_eq(&sha256(&preface.x), &preface.id.0) {
        return Err(ProofError::Id);
    }
    let signed = signed_bytes(challenge, &preface.head());
    let check = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
        let held = UnparsedPublicKey::new(algorithm, key).verify(&signed, &preface.signature);
        held.map_err(|_| ProofError::Signature)
    };
    if preface.proof == ProofKind::Key {
        return check(&ED25519, &preface.x);
    }
    let (ca, leaf) = (parse(&preface.x)?, parse(&preface.leaf)?);
    is_for(&leaf, preface.role)?;
    let now = ASN1Time::from_timestamp(now_s).map_err(|_| ProofError::Time)?;
    if !leaf.validity().is_valid_at(now) {
        return Err(ProofError::Time);
    }
    // First the cheap proof that it holds the key, then the CA's.
    let key = leaf.public_key();
    check(algorithm(key)?, &key.subject_public_key.data)?;
    is_signed_by(&leaf, &ca)
}

/// One certificate and nothing behind it.
fn parse(der: &[u8]) -> Result<X509Certificate<'_>, ProofError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(ProofError::Encoding),
    }
}

fn is_for(leaf: &X509Certificate<'_>, role: Role) -> Result<(), ProofError> {
    let usage = leaf
        .extended_key_usage()
        .map_err(|_| ProofError::Encoding)?;
    let fits = usage.is_some_and(|usage| match role {
        Role::Bridge => usage.value.server_auth,
        Role::Broker => usage.value.client_auth,
    });
    if fits { Ok(()) } else { Err(ProofError::Usage) }
}

fn algorithm(
    key: &SubjectPublicKeyInfo<'_>,
) -> Result<&'static dyn VerificationAlgorithm, ProofError> {
    let kind = &key.algorithm;
    if kind.algorithm == OID_SIG_ED25519 {
        return Ok(&ED25519);
    }
    let curve = kind.parameters.as_ref().and_then(|it| it.as_oid().ok());
    let is_p256 = kind.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256);
    if is_p256 {
        return Ok(&ECDSA_P256_SHA256_ASN1);
    }
    Err(ProofError::Key)
}

fn is_signed_by(leaf: &X509Certificate<'_>, ca: &X509Certificate<'_>) -> Result<(), ProofError> {
    // The library would take SHA-1 too.
    let strong = [
        OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384,
        OID_SIG_ED25519,
        OID_PKCS1_SHA256WITHRSA,
        OID_PKCS1_SHA384WITHRSA,
        OID_PKCS1_SHA512WITHRSA,
    ];
    let named = leaf.issuer().as_raw() == ca.subject().as_raw();
    let known = strong.contains(&leaf.signature_algorithm.algorithm);
    if named && known && leaf.verify_signature(Some(ca.public_key())).is_ok() {
        return Ok(());
    }
    Err(ProofError::Issuer)
}
