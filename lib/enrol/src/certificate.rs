//! What a certificate says, beyond that a CA of ours signed it.

use culvert_net::crypto::sha256;
use culvert_proto::id::ClusterId;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::authority::BACKDATE_S;

/// Longest certificate that is read.
const CERTIFICATE_BYTES_MAX: usize = 4 << 10;

/// From when until when a certificate may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// When it was made, unix s; it is valid from a little earlier, since clocks differ.
    pub issued_unix_s: u64,
    /// Its end, unix s.
    pub until_unix_s: u64,
}

/// The certificate of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentCertificate {
    /// Whose agent it is: the common name.
    pub cluster: ClusterId,
    /// Its time.
    pub validity: Validity,
    /// Its serial number, in hex; safe to log.
    pub serial: String,
    /// The name of the CA that signed it, DER.
    pub issuer: Vec<u8>,
}

/// Why a certificate is not one of an agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// No certificate, or a damaged one.
    #[error("no readable certificate")]
    Unreadable,
    /// It is for something else.
    #[error("the certificate's extended key usage is not clientAuth alone")]
    Usage,
    /// It could sign others.
    #[error("the certificate is a CA itself")]
    Ca,
    /// Its name is none of ours.
    #[error("the certificate's common name is no cluster id")]
    Name,
}

impl AgentCertificate {
    /// Reads the certificate that a handshake has verified, and checks what the handshake does
    /// not: a usage that is named, and a name that is a cluster's.
    ///
    /// # Errors
    /// [`CertificateFault`].
    pub fn read(der: &[u8]) -> Result<Self, CertificateFault> {
        let certificate = parse(der).ok_or(CertificateFault::Unreadable)?;
        if certificate.is_ca() {
            return Err(CertificateFault::Ca);
        }
        let usage = certificate.extended_key_usage().ok().flatten();
        let is_agents = usage.is_some_and(|usage| {
            let usage = usage.value;
            usage.client_auth && !usage.server_auth && !usage.any
        });
        if !is_agents {
            return Err(CertificateFault::Usage);
        }
        let mut names = certificate.subject().iter_common_name();
        let name = match (names.next(), names.next()) {
            (Some(name), None) => name.as_str().ok(),
            _ => None,
        };
        let cluster = name.and_then(|name| ClusterId::new(name).ok());
        Ok(Self {
            cluster: cluster.ok_or(CertificateFault::Name)?,
            validity: times(&certificate),
            serial: hex(certificate.raw_serial()),
            issuer: certificate.issuer().as_raw().to_vec(),
        })
    }
}

impl Validity {
    /// When the certificate should be replaced: two thirds of its life have passed (P-27.6).
    #[must_use]
    pub fn renew_at_unix_s(&self) -> u64 {
        let life = self.until_unix_s.saturating_sub(self.issued_unix_s);
        self.issued_unix_s + life * 2 / 3
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_over(&self, now_unix_s: u64) -> bool {
        now_unix_s >= self.until_unix_s
    }
}

/// The time of a certificate of ours; `None` when it is none.
#[must_use]
pub fn validity(der: &[u8]) -> Option<Validity> {
    parse(der).map(|certificate| times(&certificate))
}

/// The public id of a CA: the first bytes of the hash of its certificate.
#[must_use]
pub fn ca_id(der: &[u8]) -> String {
    hex(&sha256(der)[..8])
}

/// The name of the holder, DER; `None` when it is no certificate.
#[must_use]
pub fn subject(der: &[u8]) -> Option<Vec<u8>> {
    parse(der).map(|certificate| certificate.subject().as_raw().to_vec())
}

/// Whether `ca` signed `der`.
#[must_use]
pub fn issuer_is(der: &[u8], ca: &[u8]) -> bool {
    let (Some(leaf), Some(ca)) = (parse(der), parse(ca)) else {
        return false;
    };
    leaf.issuer() == ca.subject() && leaf.verify_signature(Some(ca.public_key())).is_ok()
}

pub(crate) fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return None;
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}

fn times(certificate: &X509Certificate<'_>) -> Validity {
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let times = certificate.validity();
    Validity {
        issued_unix_s: seconds(times.not_before).saturating_add(BACKDATE_S),
        until_unix_s: seconds(times.not_after),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
