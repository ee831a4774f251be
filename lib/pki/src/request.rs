//! A request for a certificate: its key and the proof that the asker has it, nothing else.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256;
use x509_parser::prelude::FromDer as _;

use crate::key::is_p256;

/// Longest request that is read: one with a P-256 key has some 250 bytes.
pub const CSR_BYTES_MAX: usize = 4 << 10;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// Not a request at all.
    #[error("not one PKCS#10 request of at most {CSR_BYTES_MAX} bytes")]
    Unreadable,
    /// The key is of another kind.
    #[error("the request holds a key that is not ECDSA P-256")]
    Key,
    /// It does not prove that the asker has the key.
    #[error("the request is not signed by its own key (ECDSA with SHA-256)")]
    Signature,
}

/// A request that was checked. Names, usages, lives and extensions that it asks for are not
/// looked at.
pub struct Request {
    spki: Vec<u8>,
}

impl Request {
    /// Reads and checks PKCS#10.
    ///
    /// # Errors
    /// [`RequestFault`].
    pub fn read(der: &[u8]) -> Result<Self, RequestFault> {
        if der.len() > CSR_BYTES_MAX {
            return Err(RequestFault::Unreadable);
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| RequestFault::Unreadable)?;
        if !rest.is_empty() {
            return Err(RequestFault::Unreadable);
        }
        let spki = request.certification_request_info.subject_pki.raw;
        if !is_p256(spki) {
            return Err(RequestFault::Key);
        }
        if request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256
            || request.verify_signature().is_err()
        {
            return Err(RequestFault::Signature);
        }
        Ok(Self {
            spki: spki.to_vec(),
        })
    }

    /// The key, as a certificate holds it.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }
}
