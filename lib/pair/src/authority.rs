//! The authority of one pair: a CA that certifies exactly one bridge and its broker.

use culvert_pki::{
    Key, KeyFault, Request, RequestFault, certificates, params, read_certificates, set_life,
};
use culvert_proto::pair::{RendezvousId, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::check::{self, Fault};
use crate::identity::{Chain, Identity};
use crate::name::{NameError, check_name};

/// Life of a CA, s: ten years.
pub const CA_LIFE_S: u64 = 10 * 365 * 86_400;
/// Life of a bridge's or a broker's certificate, s: ninety days.
pub const LEAF_LIFE_S: u64 = 90 * 86_400;
/// A certificate is valid from so long before it is made, s: clocks differ.
pub const BACKDATE_S: u64 = 3_600;

/// A CA and its key. No `Debug`: whoever has it can be either side.
pub struct Authority {
    name: String,
    certificate_der: Vec<u8>,
    key: Key,
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
    /// It is none that counts.
    #[error(transparent)]
    Request(#[from] RequestFault),
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
        let key = Key::generate()?;
        let subject = format!("culvert pair {name}");
        let mut params = params(&subject, now_unix_s, BACKDATE_S, CA_LIFE_S);
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
        let ders = read_certificates(ca_pem).ok_or(Fault::Unreadable)?;
        let [certificate_der] = <[_; 1]>::try_from(ders).map_err(|_| Fault::SeveralCas)?;
        check::check_ca(&certificate_der)?;
        let key = Key::from_pem(key_pem)?;
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
        certificates([self.certificate_der.as_slice()])
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
        let request = Request::read(csr_der)?;
        let spki = request.spki();
        if spki == self.key.spki_der() {
            return Err(RequestError::OwnKey);
        }
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(MakeError::from)?;
        Ok(self.certify(&key, Role::Broker, now_unix_s)?)
    }

    fn identity(&self, role: Role, now_unix_s: u64) -> Result<Identity, MakeError> {
        let key = Key::generate()?;
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
        let mut params = params(&subject, now_unix_s, BACKDATE_S, LEAF_LIFE_S);
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

/// A certificate that `key` signs for itself: what a side shows while it bootstraps.
///
/// # Errors
/// When the library fails.
pub fn self_signed(key: &Key, now_unix_s: u64) -> Result<Vec<u8>, MakeError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "culvert bootstrap");
    set_life(&mut params, now_unix_s, BACKDATE_S, LEAF_LIFE_S);
    let der = key.with_pair(|pair| Ok(params.self_signed(pair)?.der().to_vec()))?;
    Ok(der)
}
