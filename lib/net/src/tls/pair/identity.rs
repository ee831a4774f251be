//! What one side of a pair shows: a certificate chain, its key, and the one CA that it trusts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::CHAIN_MAX;
use crate::tls::{TlsError, files};

/// What a handshake shows.
pub(super) type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Why this is no identity of a pair.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is missing, empty or no PEM.
    #[error(transparent)]
    File(#[from] TlsError),
    /// The CA file holds more than the pair's one CA.
    #[error("{0}: holds several certificates; a pair has exactly one CA, give that alone")]
    SeveralCas(PathBuf),
    /// The CA is none.
    #[error("the pair's CA is no CA certificate ({0}); give the one that signed both sides")]
    NoCa(String),
    /// There is no leaf, or too much above it.
    #[error("a chain of {0} certificates; give 1 to {CHAIN_MAX}, leaf first")]
    Chain(usize),
    /// The key is written in another way.
    #[error("{0}: the private key is not PKCS#8; convert it: openssl pkcs8 -topk8 -nocrypt")]
    NotPkcs8(PathBuf),
    /// Key, chain and CA do not work together.
    #[error("certificate and private key cannot be used: {0}; give the pair that belongs together")]
    Unusable(String),
}

/// CA, chain and key of one side, from memory. No `Debug`: the key is a secret.
pub struct PairIdentity {
    ca: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key_pkcs8: Zeroizing<Vec<u8>>,
}

impl PairIdentity {
    /// From DER: the CA, the chain leaf first, the leaf's private key in PKCS#8.
    ///
    /// # Errors
    /// When the CA is none or the chain is empty or too long.
    pub fn new(
        ca_der: Vec<u8>,
        chain_der: Vec<Vec<u8>>,
        key_pkcs8_der: Zeroizing<Vec<u8>>,
    ) -> Result<PairIdentity, IdentityError> {
        if chain_der.is_empty() || chain_der.len() > CHAIN_MAX {
            return Err(IdentityError::Chain(chain_der.len()));
        }
        check_ca(&ca_der)?;
        Ok(PairIdentity {
            ca: ca_der.into(),
            chain: chain_der.into_iter().map(CertificateDer::from).collect(),
            key_pkcs8: key_pkcs8_der,
        })
    }

    /// From PEM files.
    ///
    /// # Errors
    /// When one is missing, empty, not PEM, or not what it must be; the text names it.
    pub fn load(cert: &Path, key: &Path, ca: &Path) -> Result<PairIdentity, IdentityError> {
        let mut cas = files::certificates(ca, &files::read(ca)?)?;
        let (Some(one), true) = (cas.pop(), cas.is_empty()) else {
            return Err(IdentityError::SeveralCas(ca.to_owned()));
        };
        let chain = files::certificates(cert, &files::read(cert)?)?;
        // Many tools append the CA; it is known.
        let chain = chain.into_iter().filter(|shown| *shown != one);
        let chain = chain.map(|shown| shown.to_vec()).collect();
        let secret = match files::private_key(key, &files::read(key)?)? {
            PrivateKeyDer::Pkcs8(secret) => secret.secret_pkcs8_der().to_vec(),
            _ => return Err(IdentityError::NotPkcs8(key.to_owned())),
        };
        PairIdentity::new(one.to_vec(), chain, Zeroizing::new(secret))
    }

    /// SHA-256 of the CA's DER: the pair's name.
    #[must_use]
    pub fn info_hash(&self) -> [u8; 32] {
        crate::crypto::sha256(&self.ca)
    }

    /// The CA, DER.
    #[must_use]
    pub fn ca_der(&self) -> &[u8] {
        &self.ca
    }

    /// Our own certificate, DER.
    #[must_use]
    pub fn leaf_der(&self) -> &[u8] {
        self.chain.first().map_or(&[], |leaf| leaf)
    }

    /// The private key, PKCS#8 DER.
    #[must_use]
    pub fn key_pkcs8_der(&self) -> &[u8] {
        &self.key_pkcs8
    }

    /// When our own certificate ends, Unix seconds; `None` when it cannot be read.
    #[must_use]
    pub fn not_after_s(&self) -> Option<u64> {
        let (_, leaf) = X509Certificate::from_der(self.leaf_der()).ok()?;
        u64::try_from(leaf.validity().not_after.timestamp()).ok()
    }

    pub(super) fn roots(&self) -> Result<Arc<RootCertStore>, IdentityError> {
        let mut roots = RootCertStore::empty();
        let added = roots.add(self.ca.clone());
        added.map_err(|why| IdentityError::NoCa(why.to_string()))?;
        Ok(Arc::new(roots))
    }

    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key_pkcs8.to_vec()).into()
    }
}

fn check_ca(der: &[u8]) -> Result<(), IdentityError> {
    let (rest, ca) =
        X509Certificate::from_der(der).map_err(|why| IdentityError::NoCa(why.to_string()))?;
    if !rest.is_empty() {
        return Err(IdentityError::NoCa("bytes follow it".to_owned()));
    }
    if !ca.is_ca() {
        let text = format!("{} may not sign certificates", ca.subject());
        return Err(IdentityError::NoCa(text));
    }
    super::verify::check_key(&ca).map_err(|why| IdentityError::NoCa(why.to_string()))
}
