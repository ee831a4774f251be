//! What a broker keeps: its bootstrap key and, once it was certified, its identity.

use culvert_pki::{Key, KeyFault};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::authority::MakeError;
use crate::code::PairingCode;
use crate::identity::{Identity, IdentityError};

/// The only version.
const VERSION: u64 = 1;
/// Room for a document: a text that grows leaves copies behind.
const ROOM_BYTES: usize = 8 << 10;

/// A broker's keys. No `Debug`.
pub struct BrokerState {
    boot_key: Key,
    identity: Option<Identity>,
}

/// Why a document is no state of a broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerStateError {
    /// Not JSON of this shape. The parser's own words may quote a key.
    #[error("the broker's state is damaged: JSON, line {line} column {column}")]
    Json {
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// A later version wrote it.
    #[error("broker's state of version {seen}; this program reads version {VERSION}: upgrade")]
    Version {
        /// The version seen.
        seen: u64,
    },
    /// Its bootstrap key is none.
    #[error("the broker's bootstrap key: {0}")]
    Key(#[from] KeyFault),
    /// Its certificate and key do not go together.
    #[error("the broker's certificate: {0}")]
    Identity(#[from] IdentityError),
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u64,
    boot_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<Parts>,
}

#[derive(Serialize, Deserialize)]
struct Parts {
    certificate: String,
    ca_certificate: String,
    key: String,
}

impl Drop for Document {
    fn drop(&mut self) {
        self.boot_key.zeroize();
        if let Some(parts) = &mut self.identity {
            parts.key.zeroize();
        }
    }
}

impl BrokerState {
    /// A broker with a fresh bootstrap key.
    ///
    /// # Errors
    /// When the generator fails.
    pub fn generate() -> Result<BrokerState, MakeError> {
        Ok(BrokerState {
            boot_key: Key::generate()?,
            identity: None,
        })
    }

    /// The key that it shows while it bootstraps.
    #[must_use]
    pub fn boot_key(&self) -> &Key {
        &self.boot_key
    }

    /// The pairing code that stands for its bootstrap key: its "fingerprint". It is a secret.
    #[must_use]
    pub fn code(&self) -> PairingCode {
        PairingCode::of_key(self.boot_key.spki_sha256())
    }

    /// Its certificate and key, once it has them.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// It was certified, or forgets that it was.
    pub fn set_identity(&mut self, identity: Option<Identity>) {
        self.identity = identity;
    }

    /// Reads what [`BrokerState::to_document`] wrote.
    ///
    /// # Errors
    /// When it is something else, or was damaged.
    pub fn from_document(bytes: &[u8]) -> Result<BrokerState, BrokerStateError> {
        let json = |why: serde_json::Error| BrokerStateError::Json {
            line: why.line(),
            column: why.column(),
        };
        let Versioned { version: seen } = serde_json::from_slice(bytes).map_err(json)?;
        if seen != VERSION {
            return Err(BrokerStateError::Version { seen });
        }
        let document: Document = serde_json::from_slice(bytes).map_err(json)?;
        let identity = match &document.identity {
            Some(parts) => Some(Identity::from_pem(
                &parts.certificate,
                &parts.key,
                &parts.ca_certificate,
            )?),
            None => None,
        };
        Ok(BrokerState {
            boot_key: Key::from_pem(&document.boot_key)?,
            identity,
        })
    }

    /// The state as a store keeps it: JSON. It is a secret.
    #[must_use]
    pub fn to_document(&self) -> Zeroizing<Vec<u8>> {
        let document = Document {
            version: VERSION,
            boot_key: self.boot_key.to_pem().to_string(),
            identity: self.identity.as_ref().map(|identity| Parts {
                certificate: identity.chain_pem(),
                ca_certificate: identity.ca_pem(),
                key: identity.key_pem().to_string(),
            }),
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(ROOM_BYTES));
        serde_json::to_writer_pretty(&mut *bytes, &document)
            .expect("a document of strings and numbers goes into memory");
        bytes.push(b'\n');
        bytes
    }
}
