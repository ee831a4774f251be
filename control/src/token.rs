//! Minting cluster tokens, and the files that hold control's own secrets.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use culvert_net::crypto::{self, KeyError};
use culvert_proto::token::{Digest, TokenText, mint as compose, mint_personal as compose_personal};

use crate::registry::NewToken;

/// A fresh token from the operating system's random generator.
#[must_use]
pub fn mint() -> (TokenText, NewToken) {
    known(compose(crypto::random_bytes(), crypto::random_bytes()))
}

/// A fresh token of a person, as [`mint`].
#[must_use]
pub fn mint_personal() -> (TokenText, NewToken) {
    known(compose_personal(
        crypto::random_bytes(),
        crypto::random_bytes(),
    ))
}

fn known(text: TokenText) -> (TokenText, NewToken) {
    let id = text.id().expect("a minted token has an id").to_owned();
    let digest = digest(text.expose());
    (text, NewToken { id, digest })
}

/// What is stored of a token.
#[must_use]
pub fn digest(text: &str) -> Digest {
    Digest(crypto::sha256(text.as_bytes()))
}

/// The digest of the admin token in `path`; a fresh one is written when there is none.
///
/// # Errors
/// When the file cannot be made, or others may read it.
pub fn admin_token(path: &Path) -> Result<Digest, KeyError> {
    let failed = |source| KeyError::Io {
        path: path.to_owned(),
        source,
    };
    match crypto::read_private(path) {
        Ok(bytes) => {
            let text = std::str::from_utf8(&bytes)
                .map(str::trim)
                .unwrap_or_default();
            let token = TokenText::new(text)
                .map_err(|why| failed(io::Error::new(io::ErrorKind::InvalidData, why)))?;
            Ok(digest(token.expose()))
        }
        Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let (token, minted) = mint();
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .map_err(failed)?;
            file.write_all(token.expose().as_bytes()).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            Ok(minted.digest)
        }
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn tokens_differ_and_carry_their_id() {
        let ((first, a), (second, b)) = (mint(), mint());
        assert!(first.expose().starts_with(&format!("rhc_{}_", a.id)));
        assert_ne!(first.expose(), second.expose());
        assert_ne!(a.digest, b.digest);
        assert_eq!(a.digest, digest(first.expose()));
        let (text, new) = mint_personal();
        assert!(text.expose().starts_with(&format!("cvp_{}_", new.id)));
        assert_eq!(new.digest, digest(text.expose()));
    }

    #[test]
    fn the_admin_token_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin-token");
        let first = admin_token(&path).unwrap();
        assert_eq!(admin_token(&path).unwrap(), first);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(admin_token(&path), Err(KeyError::Mode { .. })));
    }
}
