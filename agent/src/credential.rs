//! The token that proves who we are, and the one file that keeps a rotated one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use culvert_net::carrier::Carrier;
use culvert_net::crypto::sha256;
use culvert_proto::token::{Digest, TokenText};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::mirror::Mirror;

/// The file in the state directory.
pub const FILE_NAME: &str = "agent-token";
/// First line of the file.
const MAGIC: &str = "culvert-agent-token 1";
const FILE_BYTES_MAX: u64 = 4096;

/// A token that was kept, and the configured one it came from. No `Debug`.
pub struct Kept {
    token: TokenText,
    origin: Option<Digest>,
}

impl Kept {
    /// Reads what `dir` keeps and proves that it can keep something: makes the
    /// directory (0700) if needed and writes a probe.
    ///
    /// # Errors
    /// What stands in the way, in one sentence.
    pub fn check(dir: &Path) -> Result<Option<Self>, String> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|why| format!("cannot be made: {why}"))?;
        let probe = dir.join(".agent-token.probe");
        write_durably(&probe, &probe, b"")
            .and_then(|()| fs::remove_file(&probe))
            .map_err(|why| format!("cannot be written: {why}"))?;
        Self::read(dir)
    }

    fn read(dir: &Path) -> Result<Option<Self>, String> {
        let path = dir.join(FILE_NAME);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(format!("{FILE_NAME} cannot be read: {why}")),
        };
        let meta = file
            .metadata()
            .map_err(|why| format!("{FILE_NAME}: {why}"))?;
        if meta.mode() & 0o077 != 0 {
            return Err(format!(
                "{FILE_NAME} can be read by others; chmod 600 {}",
                path.display()
            ));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(|why| format!("{FILE_NAME} cannot be read: {why}"))?;
        Self::parse(&text).map(Some).ok_or_else(|| {
            format!(
                "{FILE_NAME} is damaged; remove {} and start with a new token",
                path.display()
            )
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != MAGIC {
            return None;
        }
        let origin = match lines.next()?.strip_prefix("origin ")? {
            "-" => None,
            hex => Some(Digest::from_hex(hex)?),
        };
        let token = TokenText::new(lines.next()?.strip_prefix("token ")?).ok()?;
        Some(Self { token, origin })
    }
}

/// Whether `dir` holds a token's file, good or not.
#[must_use]
pub fn is_kept(dir: &Path) -> bool {
    dir.join(FILE_NAME).exists()
}

/// Keeps the first token of an agent that is configured with none.
///
/// # Errors
/// The token is not kept.
pub fn enrol(dir: &Path, token: &TokenText) -> io::Result<()> {
    keep(dir, None, token)
}

/// The tokens this agent may show, best first.
pub struct Tokens {
    dir: Option<PathBuf>,
    joined: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    /// The file holds the current token.
    kept: bool,
    /// What to show next; empty when a client certificate is the identity.
    current: Option<TokenText>,
    /// Another one to try when the current one is refused.
    other: Option<TokenText>,
    /// The configured token that everything came from.
    origin: Option<Digest>,
}

impl Tokens {
    /// Chooses between the configured token and the kept one.
    ///
    /// A kept token goes on as long as the configuration is the one it came
    /// from; a newly configured token takes over, but a stale join string
    /// never does (contract C-69).
    ///
    /// # Errors
    /// As [`Kept::check`].
    pub fn load(
        configured: Option<TokenText>,
        joined: bool,
        dir: Option<PathBuf>,
    ) -> Result<Self, String> {
        let kept = dir.as_deref().map_or(Ok(None), Kept::read)?;
        let origin = configured.as_ref().map(digest);
        let inner = match (kept, configured) {
            (None, configured) => Inner {
                kept: false,
                current: configured,
                other: None,
                origin,
            },
            (Some(kept), Some(configured)) if kept.origin != origin && !joined => Inner {
                kept: false,
                current: Some(configured),
                other: Some(kept.token),
                origin,
            },
            (Some(kept), configured) => Inner {
                kept: true,
                current: Some(kept.token),
                // The rotation may have been lost on its way to the hub.
                other: configured.filter(|_| kept.origin == origin),
                origin: kept.origin,
            },
        };
        Ok(Self {
            dir,
            joined,
            inner: Mutex::new(inner),
        })
    }

    /// Whether a rotated token can be kept.
    #[must_use]
    pub fn can_rotate(&self) -> bool {
        self.dir.is_some()
    }

    /// The token to show now.
    #[must_use]
    pub fn current(&self) -> Option<TokenText> {
        self.inner.lock().current.as_ref().map(TokenText::duplicate)
    }

    /// The current token was refused: shows the other one next, if there is one.
    pub fn refused(&self) -> bool {
        let mut inner = self.inner.lock();
        let Inner { current, other, .. } = &mut *inner;
        if other.is_none() {
            return false;
        }
        std::mem::swap(current, other);
        true
    }

    /// The hub took the token of a join string: keeps it, so that the string is
    /// not needed again and a stale one does no harm. Does nothing otherwise.
    ///
    /// # Errors
    /// The token is not kept.
    pub fn enrolled(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let (Some(dir), true, false) = (&self.dir, self.joined, inner.kept) else {
            return Ok(());
        };
        if let Some(token) = &inner.current {
            keep(dir, inner.origin, token)?;
            inner.kept = true;
        }
        Ok(())
    }

    /// Keeps `token` on disk and shows it from the next connect on. Returns its
    /// digest once it would survive a power cut.
    ///
    /// # Errors
    /// The token is not kept and the old one stays.
    pub fn rotate(&self, token: TokenText) -> io::Result<Digest> {
        let dir = self.dir.as_deref().ok_or(io::ErrorKind::Unsupported)?;
        let mut inner = self.inner.lock();
        keep(dir, inner.origin, &token)?;
        inner.kept = true;
        let rotated = digest(&token);
        inner.other = inner.current.replace(token);
        Ok(rotated)
    }
}

/// Keeps a token that came over a session, off the runtime's threads, in the Secret too where there
/// is one, and tells the hub so.
pub async fn take_token(
    tokens: Arc<Tokens>,
    token: TokenText,
    mirror: Option<&Arc<Mirror>>,
    carrier: &Carrier,
) {
    let kept = tokio::task::spawn_blocking(move || tokens.rotate(token)).await;
    match kept {
        Ok(Ok(digest)) => {
            if let Some(mirror) = mirror
                && let Err(why) = mirror.keep().await
            {
                tracing::error!(%why, "the new token is not in its Secret; the hub is not told of it");
                return mirror.keep_soon();
            }
            tracing::info!("new token kept; it is shown from the next connection on");
            if let Err(why) = carrier.rotated(digest) {
                tracing::warn!(%why, "the hub did not hear that the new token is kept");
            }
        }
        Ok(Err(why)) => tracing::error!(
            %why, "the new token cannot be kept; the old one stays: look at --state-dir"
        ),
        Err(why) => tracing::error!(%why, "keeping the new token failed"),
    }
}

fn keep(dir: &Path, origin: Option<Digest>, token: &TokenText) -> io::Result<()> {
    let origin = origin.map_or_else(|| "-".to_owned(), |origin| origin.to_hex());
    let text = Zeroizing::new(format!(
        "{MAGIC}\norigin {origin}\ntoken {}\n",
        token.expose()
    ));
    write_durably(
        &dir.join(".agent-token.new"),
        &dir.join(FILE_NAME),
        text.as_bytes(),
    )
}

/// SHA-256, as the hub stores it.
fn digest(token: &TokenText) -> Digest {
    Digest(sha256(token.expose().as_bytes()))
}

/// Writes to `temporary` (0600), renames it to `path`; both survive a power cut.
pub(crate) fn write_durably(temporary: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    match fs::remove_file(temporary) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    if temporary != path {
        fs::rename(temporary, path)?;
    }
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn token(text: &str) -> TokenText {
        TokenText::new(&format!("token-of-sixteen-{text}")).unwrap()
    }

    fn shown(tokens: &Tokens) -> String {
        tokens.current().unwrap().expose().to_owned()
    }

    fn load(configured: Option<&str>, joined: bool, dir: &Path) -> Tokens {
        Tokens::load(configured.map(token), joined, Some(dir.to_owned())).unwrap()
    }

    #[test]
    fn a_rotated_token_survives_a_restart_and_others_cannot_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = load(Some("a"), false, dir.path());
        let said = first.rotate(token("b")).unwrap();
        assert_eq!(said, digest(&token("b")));
        assert_eq!(shown(&first), "token-of-sixteen-b");
        let mode = fs::metadata(dir.path().join(FILE_NAME))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = load(Some("a"), false, dir.path());
        assert_eq!(shown(&again), "token-of-sixteen-b");
        assert!(again.refused());
        assert_eq!(shown(&again), "token-of-sixteen-a");
    }

    #[test]
    fn a_new_token_takes_over_but_a_stale_join_string_does_not() {
        let dir = tempfile::tempdir().unwrap();
        load(Some("a"), true, dir.path())
            .rotate(token("b"))
            .unwrap();
        assert_eq!(
            shown(&load(Some("stale"), true, dir.path())),
            "token-of-sixteen-b"
        );
        assert!(!load(Some("stale"), true, dir.path()).refused());
        assert_eq!(shown(&load(None, false, dir.path())), "token-of-sixteen-b");
        let other = tempfile::tempdir().unwrap();
        let first = load(Some("join"), true, other.path());
        first.enrolled().unwrap();
        assert_eq!(
            shown(&load(Some("stale"), true, other.path())),
            "token-of-sixteen-join"
        );
        load(Some("plain"), false, dir.path()).enrolled().unwrap();
        assert_eq!(shown(&load(None, false, dir.path())), "token-of-sixteen-b");
        assert_eq!(
            shown(&load(Some("new"), false, dir.path())),
            "token-of-sixteen-new"
        );
    }

    #[test]
    fn without_a_directory_nothing_is_rotated() {
        let tokens = Tokens::load(Some(token("a")), false, None).unwrap();
        assert!(!tokens.can_rotate());
        assert!(tokens.rotate(token("b")).is_err());
        assert_eq!(shown(&tokens), "token-of-sixteen-a");
        assert!(!tokens.refused());
    }

    #[test]
    fn damaged_and_open_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        load(Some("a"), false, dir.path())
            .rotate(token("b"))
            .unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let why = Kept::check(dir.path()).err().unwrap();
        assert!(why.contains("chmod 600"), "{why}");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() - 16 {
            fs::write(&path, &whole[..cut]).unwrap();
            let why = Kept::check(dir.path()).err().unwrap();
            assert!(why.contains("damaged"), "{cut}: {why}");
        }
    }
}
