//! The authority of one pair: a CA that certifies exactly one bridge and its broker.

use std::time::Duration;

use culvert_net::crypto::random_bytes;
use culvert_proto::pair::{RendezvousId, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SerialNumber, SubjectPublicKeyInfo, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use crate::check::{self, Fault};
use crate::identity::{Chain, Identity};
use crate::key::{KeyFault, LeafKey};
use crate::name::{NameError, check_name};
use crate::pem;

/// Life of a CA, s: ten years.
pub const CA_LIFE_S: u64 = 10 * 365 * 86_400;
/// Life of a bridge's or a broker's certificate, s: ninety days.
pub const LEAF_LIFE_S: u64 = 90 * 86_400;
/// A certificate is valid from so long before it is made, s: clocks differ.
pub const BACKDATE_S: u64 = 3_600;
/// Longest certificate request that is read: one with a P-256 key has some 250 bytes.
pub const CSR_BYTES_MAX: usize = 4 << 10;
/// Bytes of a random serial number.
const SERIAL_BYTES: usize = 16;

/// A CA and its key. No `Debug`: whoever has it can be either side.
pub struct Authority {
    name: String,
    certificate_der: Vec<u8>,
    key: LeafKey,
}

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The library failed.
    #[error("a certificate could not be made: {0}")]
    Library(#[from] rcgen::Error),
    /// The pair cannot be called so.
    #[error(transparent)]
    Name(#[from] NameError),
    /// What was read is no CA of a pair.
    #[error("the CA of the pair: {0}")]
    Ca(#[from] Fault),
    /// What was read is no key of a pair.
    #[error("the key of the pair's CA: {0}")]
    Key(#[from] KeyFault),
}

/// Why a request for a certificate is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Not a request at all.
    #[error("not a PKCS#10 request of at most {CSR_BYTES_MAX} bytes")]
    Unreadable,
    /// It does not prove that the asker has the key.
    #[error("the request is not signed by its own ECDSA P-256 key")]
    Signature,
    /// The key is of another kind.
    #[error("the request holds a key that is not ECDSA P-256")]
    Key,
    /// The key is the CA's own.
    #[error("the request holds the CA's own key")]
    OwnKey,
    /// The certificate could not be made.
    #[error(transparent)]
    Make(#[from] MakeError),
}

impl Authority {
    /// A new CA for the pair called `name`.
    ///
    /// # Errors
    /// When the pair cannot be called so, or the library fails.
    pub fn generate(name: &str, now_unix_s: u64) -> Result<Authority, MakeError> {
        check_name(name)?;
        let key = LeafKey::generate()?;
        let mut params = params(&format!("culvert pair {name}"), now_unix_s, CA_LIFE_S);
        // The CA signs the two sides and no further CA.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_der = key.with_pair(|pair| Ok(params.self_signed(pair)?.der().to_vec()))?;
        Ok(Authority {
            name: name.to_owned(),
            certificate_der,
            key,
        })
    }

    /// Reads a CA certificate and its key.
    ///
    /// # Errors
    /// When either is none, or they do not go together.
    pub fn from_pem(name: &str, ca_pem: &str, key_pem: &str) -> Result<Authority, MakeError> {
        check_name(name)?;
        let ders = pem::read_certificates(ca_pem).ok_or(Fault::Unreadable)?;
        let [certificate_der] = <[_; 1]>::try_from(ders).map_err(|_| Fault::SeveralCas)?;
        check::check_ca(&certificate_der)?;
        let key = LeafKey::from_pem(key_pem)?;
        check::check_key(&certificate_der, &key)?;
        Ok(Authority {
            name: name.to_owned(),
            certificate_der,
            key,
        })
    }

    /// The pair's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The CA certificate.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate_der
    }

    /// The CA certificate as PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        pem::certificates([self.certificate_der.as_slice()])
    }

    /// The CA's key as PEM. It is a secret.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key.to_pem()
    }

    /// What the pair is found by: SHA-256 of the CA certificate.
    #[must_use]
    pub fn info_hash(&self) -> RendezvousId {
        check::info_hash(&self.certificate_der)
    }

    /// A fresh key and certificate for the bridge.
    ///
    /// # Errors
    /// When the library fails.
    pub fn bridge(&self, now_unix_s: u64) -> Result<Identity, MakeError> {
        self.identity(Role::Bridge, now_unix_s)
    }

    /// A fresh key and certificate for a broker that is set up by hand.
    ///
    /// # Errors
    /// When the library fails.
    pub fn broker(&self, now_unix_s: u64) -> Result<Identity, MakeError> {
        self.identity(Role::Broker, now_unix_s)
    }

    /// A certificate for the broker that made the request. Of the request only the key is taken:
    /// names, usages, lives and extensions that it asks for are not looked at.
    ///
    /// # Errors
    /// When it is no request, or not signed by the P-256 key that it holds.
    pub fn sign_broker(&self, csr_der: &[u8], now_unix_s: u64) -> Result<Chain, RequestError> {
        if csr_der.len() > CSR_BYTES_MAX {
            return Err(RequestError::Unreadable);
        }
        let (rest, request) =
            X509CertificationRequest::from_der(csr_der).map_err(|_| RequestError::Unreadable)?;
        if !rest.is_empty() {
            return Err(RequestError::Unreadable);
        }
        let spki = request.certification_request_info.subject_pki.raw;
        if !check::is_p256(spki) {
            return Err(RequestError::Key);
        }
        if request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
            return Err(RequestError::Signature);
        }
        request
            .verify_signature()
            .map_err(|_| RequestError::Signature)?;
        if spki == self.key.spki_der() {
            return Err(RequestError::OwnKey);
        }
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(MakeError::from)?;
        Ok(self.certify(&key, Role::Broker, now_unix_s)?)
    }

    fn identity(&self, role: Role, now_unix_s: u64) -> Result<Identity, MakeError> {
        let key = LeafKey::generate()?;
        let public = SubjectPublicKeyInfo::from_der(key.spki_der())?;
        let chain = self.certify(&public, role, now_unix_s)?;
        Ok(Identity::of(chain, key))
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        role: Role,
        now_unix_s: u64,
    ) -> Result<Chain, MakeError> {
        let subject = format!("{} {}", self.name, role.as_str());
        let mut params = params(&subject, now_unix_s, LEAF_LIFE_S);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match role {
            Role::Bridge => ExtendedKeyUsagePurpose::ServerAuth,
            Role::Broker => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        let ca = CertificateDer::from(self.certificate_der.as_slice());
        let leaf = self.key.with_pair(|pair| {
            let issuer = Issuer::from_ca_cert_der(&ca, pair)?;
            Ok(params.signed_by(key, &issuer)?.der().to_vec())
        })?;
        Ok(Chain {
            leaf_der: leaf,
            ca_der: self.certificate_der.clone(),
        })
    }
}

fn params(subject: &str, now_unix_s: u64, life_s: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    let mut serial = random_bytes::<SERIAL_BYTES>();
    // Positive, and of full length: some readers trim or sign-extend.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    set_life(&mut params, now_unix_s, life_s);
    params
}

/// The validity that begins a little before `now_unix_s`.
pub(crate) fn set_life(params: &mut CertificateParams, now_unix_s: u64, life_s: u64) {
    // The last second that a certificate can name.
    const LAST_S: u64 = 253_402_300_799;
    let at = |unix_s: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(unix_s.min(LAST_S));
    params.not_before = at(now_unix_s.saturating_sub(BACKDATE_S));
    params.not_after = at(now_unix_s.saturating_add(life_s));
}
