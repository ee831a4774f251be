//! The end-to-end TLS before there are certificates: each side shows a key, and the caller judges
//! the other's by the pairing code.

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::verify::Trust;
use super::{IdentityError, PairStream, PairTls, PairTlsError, Side};
use crate::relay::End;

/// The key that a side shows before it has a certificate (ECDSA P-256). No `Debug`: it is a secret.
pub struct BootKey {
    key: KeyPair,
}

impl BootKey {
    /// A fresh one.
    ///
    /// # Errors
    /// When it cannot be generated.
    pub fn generate() -> Result<BootKey, IdentityError> {
        let key = KeyPair::generate().map_err(unusable)?;
        Ok(BootKey { key })
    }

    /// One that was kept, PKCS#8 DER.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_pkcs8(der: &[u8]) -> Result<BootKey, IdentityError> {
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der));
        let key = KeyPair::try_from(&der).map_err(unusable)?;
        Ok(BootKey { key })
    }

    /// PKCS#8 DER, to keep it.
    #[must_use]
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.key.serialize_der())
    }

    /// SHA-256 of its SubjectPublicKeyInfo.
    #[must_use]
    pub fn spki_sha256(&self) -> [u8; 32] {
        crate::crypto::sha256(&rcgen::PublicKeyData::subject_public_key_info(&self.key))
    }
}

/// End-to-end TLS of a side that has no certificate yet.
pub struct BootTls(PairTls);

impl BootTls {
    /// The side `side`, which shows `key` and speaks `alpn` alone.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn new(side: Side, key: &BootKey, alpn: &[u8]) -> Result<BootTls, IdentityError> {
        let mut params = CertificateParams::new(Vec::new()).map_err(unusable)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "culvert-boot");
        let shown = params.self_signed(&key.key).map_err(unusable)?;
        let secret = PrivatePkcs8KeyDer::from(key.key.serialize_der());
        let shown = (vec![shown.der().clone()], secret.into());
        PairTls::with(side, Trust::Key, shown, &[alpn]).map(BootTls)
    }

    /// Does this side's part of the handshake. The peer holds the key of what it shows and nothing
    /// more is known of it: judge [`PairStream::peer_spki`], and prove by [`PairStream::exporter`].
    ///
    /// # Errors
    /// As [`PairTls::handshake`].
    pub async fn handshake<IO: End>(&self, io: IO) -> Result<PairStream<IO>, PairTlsError> {
        self.0.handshake(io).await
    }
}

fn unusable(why: rcgen::Error) -> IdentityError {
    IdentityError::Unusable(why.to_string())
}
