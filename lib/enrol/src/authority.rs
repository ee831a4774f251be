//! The CA that certifies agents, and the listener that asks them for their certificates.

use culvert_net::crypto::random_bytes;
use culvert_pki::{Key, Request, is_p256, params, read_certificates};
use culvert_proto::id::ClusterId;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    SanType, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;

use crate::MakeError;
use crate::certificate::{Validity, ca_id, parse, validity};

/// Life of a CA, s: ten years (P-27.3).
pub const CA_LIFE_S: u64 = 10 * 365 * 86_400;
/// Longest life of a certificate, s: ninety days (P-27.4).
pub const LEAF_LIFE_S_MAX: u64 = 90 * 86_400;
/// Shortest life that can be asked for, s.
pub const LEAF_LIFE_S_MIN: u64 = 60;
/// A certificate is valid from so long before it is made, s: clocks differ.
pub const BACKDATE_S: u64 = 300;

/// A CA and its key. No `Debug`: whoever has it can be any agent.
pub struct Authority {
    certificate_der: Vec<u8>,
    key: Key,
}

/// A certificate that was just made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The certificate.
    pub der: Vec<u8>,
    /// Its time.
    pub validity: Validity,
}

impl Authority {
    /// A new CA.
    ///
    /// # Errors
    /// When the library fails.
    pub fn generate(now_unix_s: u64) -> Result<Self, MakeError> {
        let key = Key::generate()?;
        // Two CAs live side by side during a rotation: their names have to differ.
        let mark: String = random_bytes::<4>()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let subject = format!("culvert agent CA {mark}");
        let mut params = params(&subject, now_unix_s, BACKDATE_S, CA_LIFE_S);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_der = key.with_pair(|pair| Ok(params.self_signed(pair)?.der().to_vec()))?;
        Ok(Self {
            certificate_der,
            key,
        })
    }

    /// From a CA certificate and its key.
    ///
    /// # Errors
    /// When either is none, or they do not go together.
    pub fn from_der(certificate_der: Vec<u8>, key_pkcs8: &[u8]) -> Result<Self, MakeError> {
        let key = Key::from_pkcs8(key_pkcs8)?;
        Self::of(certificate_der, key)
    }

    /// As [`Authority::from_der`], from `ca.crt` and `ca.key`.
    ///
    /// # Errors
    /// As there.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, MakeError> {
        let ders = read_certificates(certificate).ok_or(MakeError::Ca)?;
        let [certificate_der] = <[_; 1]>::try_from(ders).map_err(|_| MakeError::Ca)?;
        Self::of(certificate_der, Key::from_pem(key)?)
    }

    fn of(certificate_der: Vec<u8>, key: Key) -> Result<Self, MakeError> {
        let ca = parse(&certificate_der).ok_or(MakeError::Ca)?;
        let usage = ca.key_usage().ok().flatten();
        let signs = usage.is_some_and(|usage| usage.value.key_cert_sign());
        let spki = ca.public_key().raw;
        if !ca.is_ca() || !signs || !is_p256(spki) || ca.verify_signature(None).is_err() {
            return Err(MakeError::Ca);
        }
        if spki != key.spki_der() {
            return Err(MakeError::KeyOfAnother);
        }
        Ok(Self {
            certificate_der,
            key,
        })
    }

    /// The CA certificate.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate_der
    }

    /// The CA's key. It is a secret.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Its public id.
    #[must_use]
    pub fn id(&self) -> String {
        ca_id(&self.certificate_der)
    }

    /// A certificate for an agent of `cluster`. All of its fields are ours.
    ///
    /// # Errors
    /// When the library fails.
    pub fn sign_agent(
        &self,
        request: &Request,
        cluster: &ClusterId,
        now_unix_s: u64,
        life_s: u64,
    ) -> Result<Signed, MakeError> {
        let life_s = self.bounded(now_unix_s, life_s);
        let params = params(cluster.as_str(), now_unix_s, BACKDATE_S, life_s);
        self.sign(request, params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A certificate for the listener that agents dial by one of `names`.
    ///
    /// # Errors
    /// When a name is neither a DNS name nor an address, or the library fails.
    pub fn sign_listener(
        &self,
        request: &Request,
        names: &[String],
        now_unix_s: u64,
        life_s: u64,
    ) -> Result<Signed, MakeError> {
        let life_s = self.bounded(now_unix_s, life_s);
        let mut params = params("culvert agent listener", now_unix_s, BACKDATE_S, life_s);
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        self.sign(request, params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// No certificate outlives its CA.
    fn bounded(&self, now_unix_s: u64, life_s: u64) -> u64 {
        let left = validity(&self.certificate_der).map_or(0, |own| own.until_unix_s);
        life_s.min(left.saturating_sub(now_unix_s))
    }

    fn sign(
        &self,
        request: &Request,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Signed, MakeError> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = SubjectPublicKeyInfo::from_der(request.spki())?;
        let ca = CertificateDer::from(self.certificate_der.as_slice());
        let der = self.key.with_pair(|pair| {
            let issuer = Issuer::from_ca_cert_der(&ca, pair)?;
            Ok(params.signed_by(&key, &issuer)?.der().to_vec())
        })?;
        let validity = validity(&der).ok_or(MakeError::Ca)?;
        Ok(Signed { der, validity })
    }
}
