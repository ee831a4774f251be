//! The private key of a certificate: ECDSA on P-256.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls_pki_types::PrivatePkcs8KeyDer;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo, X509Certificate};
use zeroize::{Zeroize as _, Zeroizing};

use crate::pem;

/// A private key and its public half. No `Debug`, no `Clone`.
pub struct Key {
    pkcs8: Zeroizing<Vec<u8>>,
    spki: Vec<u8>,
}

/// The bytes are no key of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an ECDSA P-256 key in PKCS#8; openssl pkcs8 -topk8 -nocrypt converts others")]
pub struct KeyFault;

impl Key {
    /// A fresh key.
    ///
    /// # Errors
    /// When the generator fails.
    pub fn generate() -> Result<Self, rcgen::Error> {
        let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let key = Self::of(&pair);
        pair.zeroize();
        Ok(key)
    }

    /// From PKCS#8.
    ///
    /// # Errors
    /// When it is no ECDSA P-256 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyFault> {
        let der = PrivatePkcs8KeyDer::from(der);
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256);
        let mut pair = pair.map_err(|_| KeyFault)?;
        let key = Self::of(&pair);
        pair.zeroize();
        Ok(key)
    }

    /// From PEM.
    ///
    /// # Errors
    /// When there is no ECDSA P-256 key in PKCS#8 in it.
    pub fn from_pem(text: &str) -> Result<Self, KeyFault> {
        Self::from_pkcs8(&pem::read_private_key(text).ok_or(KeyFault)?)
    }

    /// The key as PKCS#8. It is a secret.
    #[must_use]
    pub fn pkcs8_der(&self) -> &Zeroizing<Vec<u8>> {
        &self.pkcs8
    }

    /// The key as PEM. It is a secret.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::private_key(&self.pkcs8)
    }

    /// The public half, as a certificate holds it.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of the public half.
    #[must_use]
    pub fn spki_sha256(&self) -> [u8; 32] {
        culvert_net::crypto::sha256(&self.spki)
    }

    /// Whether the certificate (DER) is for this key.
    #[must_use]
    pub fn is_of(&self, certificate: &[u8]) -> bool {
        let parsed = X509Certificate::from_der(certificate);
        parsed.is_ok_and(|(rest, it)| rest.is_empty() && it.public_key().raw == self.spki)
    }

    /// A request for a certificate. It holds the key and asks for nothing: the issuer decides.
    ///
    /// # Errors
    /// When the library fails.
    pub fn request(&self) -> Result<Vec<u8>, rcgen::Error> {
        let params = CertificateParams::default();
        self.with_pair(|pair| Ok(params.serialize_request(pair)?.der().to_vec()))
    }

    /// Lends the key in the form in which the library signs.
    ///
    /// # Errors
    /// When the library fails.
    pub fn with_pair<T>(
        &self,
        work: impl FnOnce(&KeyPair) -> Result<T, rcgen::Error>,
    ) -> Result<T, rcgen::Error> {
        let der = PrivatePkcs8KeyDer::from(self.pkcs8.as_slice());
        let mut pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)?;
        let done = work(&pair);
        pair.zeroize();
        done
    }

    fn of(pair: &KeyPair) -> Self {
        Self {
            pkcs8: Zeroizing::new(pair.serialized_der().to_vec()),
            spki: pair.subject_public_key_info(),
        }
    }
}

/// Whether it is an ECDSA key on P-256.
#[must_use]
pub fn is_p256(spki: &[u8]) -> bool {
    let Ok((rest, key)) = SubjectPublicKeyInfo::from_der(spki) else {
        return false;
    };
    let curve = key.algorithm.parameters.as_ref();
    let curve = curve.and_then(|curve| curve.as_oid().ok());
    rest.is_empty()
        && key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve.is_some_and(|curve| curve == OID_EC_P256)
}
