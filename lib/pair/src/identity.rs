//! What one side shows: its certificate, the pair's CA, and the key.

use culvert_pki::{Key, KeyFault, certificates, read_certificates};
use culvert_proto::pair::{RendezvousId, Role};
use zeroize::Zeroizing;

use crate::check::{self, Fault, Validity};

/// A certificate and the CA that signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The certificate.
    pub leaf_der: Vec<u8>,
    /// The pair's CA.
    pub ca_der: Vec<u8>,
}

/// A certificate, its CA and its key. No `Debug`: it holds the key.
pub struct Identity {
    chain: Chain,
    key: Key,
}

/// Why certificate, CA and key make no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A certificate is not what it must be.
    #[error(transparent)]
    Certificate(#[from] Fault),
    /// The key is none.
    #[error(transparent)]
    Key(#[from] KeyFault),
}

impl Chain {
    /// Certificate, then CA: what the bridge sends at the end of the bootstrap.
    #[must_use]
    pub fn to_pem(&self) -> String {
        certificates([self.leaf_der.as_slice(), &self.ca_der])
    }

    /// Reads [`Chain::to_pem`]: exactly a certificate and its CA.
    ///
    /// # Errors
    /// When it is something else. Whether the CA signed the certificate is not looked at.
    pub fn from_pem(text: &str) -> Result<Chain, Fault> {
        let ders = read_certificates(text).ok_or(Fault::Unreadable)?;
        let [leaf_der, ca_der] = <[_; 2]>::try_from(ders).map_err(|_| Fault::ChainLength)?;
        Ok(Chain { leaf_der, ca_der })
    }

    /// What the pair is found by: SHA-256 of its CA certificate.
    #[must_use]
    pub fn info_hash(&self) -> RendezvousId {
        check::info_hash(&self.ca_der)
    }

    /// Whether it is a chain that `role` may show at this time.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self, role: Role, now_unix_s: u64) -> Result<Validity, Fault> {
        check::check_chain(self, role, now_unix_s)
    }
}

impl Identity {
    /// Joins what the bridge sent with the key that the request was for.
    ///
    /// # Errors
    /// When the chain is not sound, not for `role`, or for another key.
    pub fn new(
        chain: Chain,
        key: Key,
        role: Role,
        now_unix_s: u64,
    ) -> Result<Identity, IdentityError> {
        chain.check(role, now_unix_s)?;
        check::check_key(&chain.leaf_der, &key)?;
        Ok(Identity { chain, key })
    }

    /// Reads the three files of an identity. `cert_pem` may hold the CA behind the certificate.
    /// Validity and usage are not looked at: see [`Identity::check`].
    ///
    /// # Errors
    /// When a part is unreadable, or key and certificate do not go together.
    pub fn from_pem(
        cert_pem: &str,
        key_pem: &str,
        ca_pem: &str,
    ) -> Result<Identity, IdentityError> {
        let ca = read_certificates(ca_pem).ok_or(Fault::Unreadable)?;
        let [ca_der] = <[_; 1]>::try_from(ca).map_err(|_| Fault::SeveralCas)?;
        let mut leaf = read_certificates(cert_pem).ok_or(Fault::Unreadable)?;
        if leaf.len() == 2 && leaf[1] == ca_der {
            leaf.pop();
        }
        let [leaf_der] = <[_; 1]>::try_from(leaf).map_err(|_| Fault::ChainLength)?;
        let key = Key::from_pem(key_pem)?;
        check::check_key(&leaf_der, &key)?;
        let chain = Chain { leaf_der, ca_der };
        Ok(Identity { chain, key })
    }

    pub(crate) fn of(chain: Chain, key: Key) -> Identity {
        Identity { chain, key }
    }

    /// Certificate and CA.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The pair's CA.
    #[must_use]
    pub fn ca_der(&self) -> &[u8] {
        &self.chain.ca_der
    }

    /// The certificates that the side shows, its own first, without the CA.
    #[must_use]
    pub fn chain_der(&self) -> Vec<Vec<u8>> {
        vec![self.chain.leaf_der.clone()]
    }

    /// The side's own certificate.
    #[must_use]
    pub fn leaf_der(&self) -> &[u8] {
        &self.chain.leaf_der
    }

    /// The key as PKCS#8. It is a secret.
    #[must_use]
    pub fn key_pkcs8_der(&self) -> &Zeroizing<Vec<u8>> {
        self.key.pkcs8_der()
    }

    /// What the pair is found by.
    #[must_use]
    pub fn info_hash(&self) -> RendezvousId {
        self.chain.info_hash()
    }

    /// Whether `role` may show it at this time.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self, role: Role, now_unix_s: u64) -> Result<Validity, Fault> {
        self.chain.check(role, now_unix_s)
    }

    /// The certificate as PEM, followed by its CA.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        self.chain.to_pem()
    }

    /// The CA as PEM.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        certificates([self.chain.ca_der.as_slice()])
    }

    /// The key as PEM. It is a secret.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key.to_pem()
    }
}
