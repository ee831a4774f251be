//! Whose signature a data plane believes.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use culvert_net::crypto::VerifyingKey;

/// Largest trust file that is read.
const FILE_BYTES_MAX: u64 = 1024;
const PREFIX: &str = "ed25519:";

/// The one key whose signatures are believed.
#[derive(Clone, Debug)]
pub enum Trust {
    /// A known key.
    Key(VerifyingKey),
    /// The key in this file. When the file is missing, the first key seen on
    /// the authenticated link is written to it, and is the only one from then on.
    File(PathBuf),
}

/// Why a key is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read or written.
    #[error("trust file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The content is no key.
    #[error("trust file {path}: not one line of `ed25519:` and 64 hexadecimal digits")]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// Control signs with another key.
    #[error(
        "control signs with key {seen}, this data plane trusts {trusted}: another hub, or its \
         state directory was replaced; if that is intended, remove the trust file and the \
         snapshot of this data plane"
    )]
    OtherKey {
        /// Id of the key seen.
        seen: String,
        /// Id of the key trusted.
        trusted: String,
    },
}

impl Trust {
    /// The key trusted now, `None` when nothing was learned yet.
    ///
    /// # Errors
    /// When the file cannot be read or holds no key.
    pub fn key(&self) -> Result<Option<VerifyingKey>, TrustError> {
        match self {
            Self::Key(key) => Ok(Some(*key)),
            Self::File(path) => load(path),
        }
    }

    /// Accepts `seen` when it is the trusted key, or learns it when there is none.
    pub(crate) fn accept(&self, seen: VerifyingKey) -> Result<VerifyingKey, TrustError> {
        match (self.key()?, self) {
            (Some(trusted), _) if trusted == seen => Ok(seen),
            (Some(trusted), _) => Err(TrustError::OtherKey {
                seen: hex(&seen.id()),
                trusted: hex(&trusted.id()),
            }),
            (None, Self::File(path)) => {
                save(path, seen)?;
                tracing::info!(key = hex(&seen.id()), path = %path.display(), "signing key learned");
                Ok(seen)
            }
            (None, Self::Key(_)) => Ok(seen),
        }
    }
}

fn load(path: &Path) -> Result<Option<VerifyingKey>, TrustError> {
    use std::io::Read as _;
    let io = |source| TrustError::Io {
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(io(why)),
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(io)?;
    let key = text.trim().strip_prefix(PREFIX).and_then(unhex);
    match key {
        Some(key) => Ok(Some(VerifyingKey::from_bytes(key))),
        None => Err(TrustError::Format {
            path: path.to_owned(),
        }),
    }
}

fn save(path: &Path, key: VerifyingKey) -> Result<(), TrustError> {
    let io = |source| TrustError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    writeln!(file, "{PREFIX}{}", hex(&key.to_bytes())).map_err(io)?;
    file.sync_all().map_err(io)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_is_learned_and_every_other_refused() {
        let dir = tempfile::tempdir().unwrap();
        let trust = Trust::File(dir.path().join("trust"));
        let (first, other) = (
            VerifyingKey::from_bytes([1; 32]),
            VerifyingKey::from_bytes([2; 32]),
        );
        assert!(trust.key().unwrap().is_none());
        trust.accept(first).unwrap();
        assert_eq!(trust.key().unwrap(), Some(first));
        trust.accept(first).unwrap();
        assert!(matches!(
            trust.accept(other),
            Err(TrustError::OtherKey { .. })
        ));
        assert!(matches!(
            Trust::Key(first).accept(other),
            Err(TrustError::OtherKey { .. })
        ));
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trust");
        for text in [
            "",
            "ed25519:zz",
            "ed25519:é",
            &format!("ed25519:{}", "0".repeat(63)),
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(
                Trust::File(path.clone()).key(),
                Err(TrustError::Format { .. })
            ));
        }
    }
}
