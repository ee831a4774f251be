//! Certificates of agents: the hub's CA, requests, and what a certificate says.
//!
//! Floor 2. Control signs with it, data planes and agents make their requests with it, and all
//! three read certificates by it. No I/O, no clock.
#![forbid(unsafe_code)]

mod authority;
mod certificate;

pub use authority::{Authority, BACKDATE_S, CA_LIFE_S, LEAF_LIFE_S_MAX, LEAF_LIFE_S_MIN, Signed};
pub use certificate::{
    AgentCertificate, CertificateFault, Validity, ca_id, issuer_is, subject, validity,
};
pub use culvert_pki::{
    CSR_BYTES_MAX, Key, KeyFault, Request, RequestFault, base64, certificates, read_certificates,
};

/// A key or certificate could not be made, or what was read is none.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The library failed.
    #[error("a certificate could not be made: {0}")]
    Library(#[from] rcgen::Error),
    /// No key of ours.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// No CA.
    #[error("not one CA certificate with an ECDSA P-256 key that may sign others")]
    Ca,
    /// A CA and another's key.
    #[error("key and CA certificate do not go together")]
    KeyOfAnother,
}
