//! The pairing code F: 32 secret bytes that two administrators share, and what follows from them.
//!
//! F travels between people only. What the wire and the relay see is derived from it one way.

use culvert_net::crypto::{
    SigningKey, constant_time_eq, hkdf_sha256, hmac_sha256, random_bytes, sha256,
};
use culvert_proto::pair::{RendezvousId, Role};
use zeroize::Zeroizing;

use crate::word::{Kind, WordError};

const KIND: Kind = Kind {
    what: "pairing code",
    prefix: "cvf_",
    version: 1,
    // 4 for the prefix, 50 for 37 bytes.
    characters_max: 54,
};

/// A pairing code. No `Debug`: whoever has it can take a side of the pair.
pub struct PairingCode(Zeroizing<[u8; 32]>);

impl PairingCode {
    /// A random code.
    #[must_use]
    pub fn random() -> PairingCode {
        PairingCode(Zeroizing::new(random_bytes()))
    }

    /// The code that stands for a bootstrap key: the SHA-256 of its SubjectPublicKeyInfo.
    #[must_use]
    pub fn of_key(spki_sha256: [u8; 32]) -> PairingCode {
        PairingCode(Zeroizing::new(spki_sha256))
    }

    /// From its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> PairingCode {
        PairingCode(Zeroizing::new(bytes))
    }

    /// Reads the word `cvf_...`.
    ///
    /// # Errors
    /// When it is no pairing code, damaged, or of another version.
    pub fn decode(word: &str) -> Result<PairingCode, WordError> {
        let content = KIND.open(word)?;
        let mut bytes = Zeroizing::new([0; 32]);
        if content.len() != bytes.len() {
            return Err(KIND.damaged());
        }
        bytes.copy_from_slice(&content);
        Ok(PairingCode(bytes))
    }

    /// The word to copy. It is a secret.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<String> {
        let word = KIND.seal(self.0.as_slice());
        word.expect("32 bytes are within the bound of the word")
    }

    /// Its bytes. They are a secret.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The seed of the Ed25519 key that both sides show the relay while they bootstrap.
    #[must_use]
    pub fn boot_seed(&self) -> Zeroizing<[u8; 32]> {
        hkdf_sha256(self.0.as_slice(), b"culvert-boot/1 join")
    }

    /// The key of the proofs inside the end-to-end TLS.
    #[must_use]
    pub fn proof_key(&self) -> Zeroizing<[u8; 32]> {
        hkdf_sha256(self.0.as_slice(), b"culvert-boot/1 proof")
    }

    /// What a side says first inside the end-to-end TLS; `exporter` binds it to that connection.
    #[must_use]
    pub fn proof(&self, role: Role, exporter: &[u8; 32]) -> [u8; 32] {
        let mut said = [0; 33];
        said[0] = role as u8;
        said[1..].copy_from_slice(exporter);
        hmac_sha256(self.proof_key().as_slice(), &said)
    }

    /// Whether `said` is what the side `role` says on this connection. In constant time.
    #[must_use]
    pub fn proves(&self, role: Role, exporter: &[u8; 32], said: &[u8]) -> bool {
        constant_time_eq(&self.proof(role, exporter), said)
    }

    /// The id under which the relay matches both sides while they bootstrap.
    ///
    /// One cannot go from it to the code, so it may be shown and logged.
    #[must_use]
    pub fn rendezvous_id(&self) -> RendezvousId {
        let key = SigningKey::from_seed(&self.boot_seed());
        let key = key.expect("every 32 bytes are an Ed25519 seed");
        RendezvousId(sha256(&key.verifying_key().to_bytes()))
    }

    /// Whether it stands for the key with this hash. In constant time.
    #[must_use]
    pub fn is_of_key(&self, spki_sha256: &[u8; 32]) -> bool {
        constant_time_eq(self.0.as_slice(), spki_sha256)
    }

    /// Whether both are the same. In constant time.
    #[must_use]
    pub fn is_same(&self, other: &PairingCode) -> bool {
        constant_time_eq(self.0.as_slice(), other.0.as_slice())
    }
}
