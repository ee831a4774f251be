//! The few cryptographic verbs the project needs, all from aws-lc-rs.
//!
//! Secrets have no `Debug`, `Display` or `Clone`; error texts carry paths and key ids, never material.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use aws_lc_rs::{constant_time, digest, hkdf, hmac, rand};
use zeroize::Zeroizing;

/// Bytes of an Ed25519 public key.
pub const VERIFYING_KEY_BYTES: usize = 32;
/// Bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Largest key file that is read.
const KEY_FILE_BYTES_MAX: u64 = 4096;
/// Bytes of what [`hkdf_sha256`] derives, and of an Ed25519 seed.
pub const DERIVED_BYTES: usize = 32;

/// SHA-256 of `data`.
#[must_use]
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, data).as_ref());
    out
}

/// `N` bytes of the operating system's random generator. For secrets and ids.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    rand::fill(&mut out).expect("aws-lc-rs aborts the process itself when it has no entropy");
    out
}

/// HMAC-SHA256 of `data` under `key`.
#[must_use]
pub fn hmac_sha256(key: &[u8], data: &[u8]) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut out = [0; 32];
    out.copy_from_slice(hmac::sign(&key, data).as_ref());
    out
}

/// HKDF-SHA256 (RFC 5869) without a salt: 32 bytes for the purpose that `info` names.
#[must_use]
pub fn hkdf_sha256(ikm: &[u8], info: &[u8]) -> Zeroizing<[u8; DERIVED_BYTES]> {
    let mut out = Zeroizing::new([0; DERIVED_BYTES]);
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(ikm);
    prk.expand(&[info], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(out.as_mut_slice()))
        .expect("one hash's length is what HKDF can always give");
    out
}

/// Compares in a time that depends on the lengths only.
#[must_use]
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Seals `secret` with AES-256-GCM under a random nonce; it opens in the same `context` only.
#[must_use]
pub fn seal(key: &[u8; DERIVED_BYTES], context: &[u8], secret: &[u8]) -> Vec<u8> {
    // Room for nonce and tag: a buffer that grows leaves copies behind.
    let mut sealed = Vec::with_capacity(secret.len() + 64);
    sealed.extend_from_slice(secret);
    let nonce = RandomizedNonceKey::new(&AES_256_GCM, key)
        .and_then(|key| key.seal_in_place_append_tag(Aad::from(context), &mut sealed))
        .expect("32 bytes are a key, and what is sealed here is short");
    sealed.splice(0..0, nonce.as_ref().iter().copied());
    sealed
}

/// What [`seal`] sealed; `None` under another key, in another context, or after any change.
#[must_use]
pub fn open(
    key: &[u8; DERIVED_BYTES],
    context: &[u8],
    sealed: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut opened = Zeroizing::new(sealed.to_vec());
    let key = RandomizedNonceKey::new(&AES_256_GCM, key).ok()?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let bytes = key.open_in_place(nonce, Aad::from(context), &mut opened);
    let bytes = bytes.ok()?.len();
    opened.truncate(bytes);
    Some(opened)
}

/// SHA-1, which RFC 6455 demands for `Sec-WebSocket-Accept` and nothing else may use.
pub(crate) fn sha1_of_websocket_key(data: &[u8]) -> [u8; 20] {
    let mut out = [0; 20];
    out.copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, data).as_ref());
    out
}

/// Why a key could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("key file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others than the owner may read or write the file.
    #[error("key file {path}: mode {mode:04o} lets others in; run: chmod 0600 {path}")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another user owns the file.
    #[error("key file {path}: owned by uid {owner}, this process runs as uid {uid}")]
    Owner {
        /// The file.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        uid: u32,
    },
    /// The content is no Ed25519 key.
    #[error("key file {path}: not an Ed25519 key in PKCS#8")]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The key pair could not be made.
    #[error("an Ed25519 key could not be generated")]
    Generate,
}

/// An Ed25519 signing key.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl SigningKey {
    /// A fresh key.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the generator fails.
    pub fn generate() -> Result<SigningKey, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Generate)?;
        let document = pair.to_pkcs8().map_err(|_| KeyError::Generate)?;
        let pkcs8 = Zeroizing::new(document.as_ref().to_vec());
        Ok(SigningKey { pair, pkcs8 })
    }

    /// The key that a seed of 32 bytes stands for.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the library does not take the seed.
    pub fn from_seed(seed: &[u8; DERIVED_BYTES]) -> Result<SigningKey, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::Generate)?;
        let document = pair.to_pkcs8().map_err(|_| KeyError::Generate)?;
        let pkcs8 = Zeroizing::new(document.as_ref().to_vec());
        Ok(SigningKey { pair, pkcs8 })
    }

    /// Reads a key written by [`SigningKey::save`]; the file must be ours alone (0600).
    ///
    /// # Errors
    /// When the file is missing, readable by others, foreign, or no key.
    pub fn load(path: &Path) -> Result<SigningKey, KeyError> {
        let pkcs8 = read_private(path)?;
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| KeyError::Format {
            path: path.to_owned(),
        })?;
        Ok(SigningKey { pair, pkcs8 })
    }

    /// Writes the key to a new file of mode 0600, durably.
    ///
    /// # Errors
    /// When the file exists already or cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        let io = |source| KeyError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        file.write_all(&self.pkcs8).map_err(io)?;
        file.sync_all().map_err(io)
    }

    /// Reads the key of `path`, or makes and saves one when there is no such file.
    ///
    /// # Errors
    /// As [`SigningKey::load`] and [`SigningKey::save`].
    pub fn load_or_generate(path: &Path) -> Result<SigningKey, KeyError> {
        match SigningKey::load(path) {
            Err(KeyError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                let key = SigningKey::generate()?;
                key.save(path)?;
                Ok(key)
            }
            other => other,
        }
    }

    /// Signs `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut out = [0; SIGNATURE_BYTES];
        out.copy_from_slice(self.pair.sign(message).as_ref());
        out
    }

    /// A secret for the purpose that `info` names, for whoever holds this key.
    #[must_use]
    pub fn derive(&self, info: &[u8]) -> Zeroizing<[u8; DERIVED_BYTES]> {
        hkdf_sha256(&self.pkcs8, info)
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut bytes = [0; VERIFYING_KEY_BYTES];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        VerifyingKey(bytes)
    }
}

/// An Ed25519 public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VerifyingKey([u8; VERIFYING_KEY_BYTES]);

impl VerifyingKey {
    /// From its 32 bytes. Whether they are a point is known at the first verification.
    #[must_use]
    pub fn from_bytes(bytes: [u8; VERIFYING_KEY_BYTES]) -> VerifyingKey {
        VerifyingKey(bytes)
    }

    /// Its 32 bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; VERIFYING_KEY_BYTES] {
        self.0
    }

    /// Key id: the first 8 bytes of the SHA-256 of the key. Safe to log.
    #[must_use]
    pub fn id(self) -> [u8; 8] {
        let mut id = [0; 8];
        id.copy_from_slice(&sha256(&self.0)[..8]);
        id
    }

    /// Whether `signature` is this key's signature of `message`.
    #[must_use]
    pub fn verify(self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(message, signature)
            .is_ok()
    }
}

/// Reads a file that must belong to this user and be closed to all others.
///
/// # Errors
/// When it is missing, larger than 4 KiB, foreign, or open to others.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    read_private_within(path, KEY_FILE_BYTES_MAX)
}

/// As [`read_private`], for what may be up to `bytes_max` long; a longer file is refused.
///
/// # Errors
/// When it is missing, too large, foreign, or open to others.
pub fn read_private_within(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    use std::io::Read as _;
    let io = |source| KeyError::Io {
        path: path.to_owned(),
        source,
    };
    let file = fs::File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    let uid = rustix::process::geteuid().as_raw();
    if meta.uid() != uid {
        return Err(KeyError::Owner {
            path: path.to_owned(),
            owner: meta.uid(),
            uid,
        });
    }
    if meta.len() > bytes_max {
        return Err(io(std::io::ErrorKind::FileTooLarge.into()));
    }
    // Room for all of it: a buffer that grows leaves copies behind.
    let room = usize::try_from(meta.len()).unwrap_or_default() + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(bytes_max).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn digests_match_published_vectors() {
        assert_eq!(sha256(b"abc")[..4], [0xba, 0x78, 0x16, 0xbf]);
        // RFC 4231, test case 2.
        assert_eq!(
            hmac_sha256(b"Jefe", b"what do ya want for nothing?")[..4],
            [0x5b, 0xdc, 0xc1, 0x46]
        );
        assert!(constant_time_eq(b"a", b"a") && !constant_time_eq(b"a", b"b"));
        assert!(!constant_time_eq(b"a", b"ab"));
        // RFC 5869, test case 3: neither salt nor info.
        assert_eq!(hkdf_sha256(&[0x0b; 22], b"")[..4], [0x8d, 0xa4, 0xe7, 0x75]);
        // RFC 8032, test 1.
        let seed = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec,
            0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03,
            0x1c, 0xae, 0x7f, 0x60,
        ];
        let key = SigningKey::from_seed(&seed).unwrap();
        assert_eq!(
            key.verifying_key().to_bytes()[..4],
            [0xd7, 0x5a, 0x98, 0x01]
        );
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_in_its_context_and_unchanged() {
        let (key, other) = ([1; 32], [2; 32]);
        let sealed = seal(&key, b"a", b"secret");
        assert_eq!(open(&key, b"a", &sealed).unwrap()[..], b"secret"[..]);
        assert_ne!(sealed, seal(&key, b"a", b"secret"), "nonces differ");
        assert!(open(&other, b"a", &sealed).is_none());
        assert!(open(&key, b"b", &sealed).is_none());
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert!(open(&key, b"a", &changed).is_none(), "{place}");
            assert!(
                open(&key, b"a", &sealed[..place]).is_none(),
                "cut at {place}"
            );
        }
    }

    #[test]
    fn a_saved_key_signs_like_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signing.key");
        let first = SigningKey::load_or_generate(&path).unwrap();
        let again = SigningKey::load_or_generate(&path).unwrap();
        let signature = first.sign(b"state");
        assert!(again.verifying_key().verify(b"state", &signature));
        assert!(!again.verifying_key().verify(b"stale", &signature));
        assert_eq!(first.verifying_key().id(), again.verifying_key().id());
        assert!(
            !SigningKey::generate()
                .unwrap()
                .verifying_key()
                .verify(b"state", &signature)
        );
    }

    #[test]
    fn an_open_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signing.key");
        SigningKey::load_or_generate(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            SigningKey::load(&path),
            Err(KeyError::Mode { mode: 0o640, .. })
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"nonsense").unwrap();
        assert!(matches!(
            SigningKey::load(&path),
            Err(KeyError::Format { .. })
        ));
    }

    #[test]
    fn a_file_beyond_its_bound_is_refused_and_not_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("document");
        fs::write(&path, [7; 100]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_private_within(&path, 100).unwrap().len(), 100);
        assert!(matches!(
            read_private_within(&path, 99),
            Err(KeyError::Io { .. })
        ));
    }
}
