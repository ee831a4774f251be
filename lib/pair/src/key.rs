//! The private key of a certificate: ECDSA on P-256.

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls_pki_types::PrivatePkcs8KeyDer;
use zeroize::{Zeroize as _, Zeroizing};

use crate::authority::{LEAF_LIFE_S, MakeError, set_life};
use crate::pem;

/// A private key and its public half. No `Debug`, no `Clone`.
pub struct LeafKey {
    pkcs8: Zeroizing<Vec<u8>>,
    spki: Vec<u8>,
}

/// The bytes are no key of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an ECDSA P-256 key in PKCS#8; openssl pkcs8 -topk8 -nocrypt converts others")]
pub struct KeyFault;

impl LeafKey {
    /// A fresh key.
    ///
    /// # Errors
    /// When the generator fails.
    pub fn generate() -> Result<LeafKey, MakeError> {
        let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let key = LeafKey::of(&pair);
        pair.zeroize();
        Ok(key)
    }

    /// From PKCS#8.
    ///
    /// # Errors
    /// When it is no ECDSA P-256 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<LeafKey, KeyFault> {
        let der = PrivatePkcs8KeyDer::from(der);
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256);
        let mut pair = pair.map_err(|_| KeyFault)?;
        let key = LeafKey::of(&pair);
        pair.zeroize();
        Ok(key)
    }

    /// From PEM.
    ///
    /// # Errors
    /// When there is no ECDSA P-256 key in PKCS#8 in it.
    pub fn from_pem(text: &str) -> Result<LeafKey, KeyFault> {
        LeafKey::from_pkcs8(&pem::read_private_key(text).ok_or(KeyFault)?)
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

    /// A certificate that the key signs for itself: what a side shows while it bootstraps.
    ///
    /// # Errors
    /// When the library fails.
    pub fn self_signed(&self, now_unix_s: u64) -> Result<Vec<u8>, MakeError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "culvert bootstrap");
        set_life(&mut params, now_unix_s, LEAF_LIFE_S);
        self.with_pair(|pair| Ok(params.self_signed(pair)?.der().to_vec()))
    }

    /// A request for a certificate. It holds the key and asks for nothing: the issuer decides.
    ///
    /// # Errors
    /// When the library fails.
    pub fn request(&self) -> Result<Vec<u8>, MakeError> {
        let params = CertificateParams::default();
        self.with_pair(|pair| Ok(params.serialize_request(pair)?.der().to_vec()))
    }

    /// Lends the key in the form in which the library signs.
    pub(crate) fn with_pair<T>(
        &self,
        work: impl FnOnce(&KeyPair) -> Result<T, MakeError>,
    ) -> Result<T, MakeError> {
        let der = PrivatePkcs8KeyDer::from(self.pkcs8.as_slice());
        let mut pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)?;
        let done = work(&pair);
        pair.zeroize();
        done
    }

    fn of(pair: &KeyPair) -> LeafKey {
        LeafKey {
            pkcs8: Zeroizing::new(pair.serialized_der().to_vec()),
            spki: pair.subject_public_key_info(),
        }
    }
}
