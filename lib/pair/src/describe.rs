//! What may be said of a certificate in public.

use culvert_net::crypto::sha256;
use culvert_proto::pair::RendezvousId;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::check::{Validity, validity};

/// The public part of a certificate, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Whom it is for.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// From when until when.
    pub validity: Validity,
    /// SHA-256 of the certificate, hexadecimal.
    pub sha256: String,
    /// SHA-256 of its public key, hexadecimal.
    pub spki_sha256: String,
}

/// Describes a certificate; none when it is unreadable.
#[must_use]
pub fn describe(der: &[u8]) -> Option<Described> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let hex = |bytes: &[u8]| RendezvousId(sha256(bytes)).to_string();
    Some(Described {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        serial: certificate.raw_serial_as_string(),
        validity: validity(&certificate),
        sha256: hex(der),
        spki_sha256: hex(certificate.public_key().raw),
    })
}
