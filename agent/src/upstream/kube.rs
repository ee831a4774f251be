//! The service-account token: never stale, never sent through the tunnel.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use http::HeaderValue;
use parking_lot::Mutex;

/// Longest token file in bytes.
pub const TOKEN_BYTES_MAX: u64 = 64 * 1024;
/// How long a token read before may stand in while its file cannot be read.
const STANDS_IN: Duration = Duration::from_secs(60);

/// A token file that is looked at before each request.
pub struct TokenFile {
    path: PathBuf,
    read: Mutex<Option<Read>>,
}

struct Read {
    stamp: Stamp,
    bearer: HeaderValue,
    seen: Instant,
}

#[derive(PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        }
    }
}

impl TokenFile {
    /// A token file; nothing is read yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            read: Mutex::new(None),
        }
    }

    /// `Bearer <token>` as the file says now. The file is read again when its
    /// inode, size or time of change differ; one `stat` otherwise.
    ///
    /// # Errors
    /// The file cannot be read or holds no token, and has been so for a minute.
    pub fn bearer(&self) -> io::Result<HeaderValue> {
        let mut read = self.read.lock();
        match self.look(read.as_ref()) {
            Ok(None) => {}
            Ok(Some(fresh)) => *read = Some(fresh),
            Err(why) => {
                return match &*read {
                    Some(read) if read.seen.elapsed() < STANDS_IN => Ok(read.bearer.clone()),
                    _ => Err(why),
                };
            }
        }
        let Some(read) = &mut *read else {
            return Err(io::ErrorKind::NotFound.into());
        };
        read.seen = Instant::now();
        Ok(read.bearer.clone())
    }

    fn look(&self, before: Option<&Read>) -> io::Result<Option<Read>> {
        let stamp = Stamp::of(&std::fs::metadata(&self.path)?);
        if before.is_some_and(|read| read.stamp == stamp) {
            return Ok(None);
        }
        // The stamp of what was read, not of what the name meant a moment ago.
        let file = File::open(&self.path)?;
        let stamp = Stamp::of(&file.metadata()?);
        let mut text = String::from("Bearer ");
        file.take(TOKEN_BYTES_MAX).read_to_string(&mut text)?;
        let text = text.trim_end();
        if text == "Bearer" {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the token file is empty",
            ));
        }
        let mut bearer = HeaderValue::try_from(text).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the token file holds more than a token",
            )
        })?;
        bearer.set_sensitive(true);
        Ok(Some(Read {
            stamp,
            bearer,
            seen: Instant::now(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_every_way_a_token_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let file = TokenFile::new(path.clone());
        assert_eq!(file.bearer().unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, "first\n").unwrap();
        assert_eq!(file.bearer().unwrap(), "Bearer first");
        // Same size and, on a coarse clock, the same time: the inode tells.
        std::fs::write(dir.path().join("new"), "secnd\n").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(file.bearer().unwrap(), "Bearer secnd");
        // As kubelet does it: a symbolic link that is swapped.
        std::fs::write(dir.path().join("data"), "third").unwrap();
        std::os::unix::fs::symlink("data", dir.path().join("link")).unwrap();
        std::fs::rename(dir.path().join("link"), &path).unwrap();
        assert_eq!(file.bearer().unwrap(), "Bearer third");
        assert!(file.bearer().unwrap().is_sensitive());
    }

    #[test]
    fn an_unreadable_file_is_bridged_for_a_minute_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "one").unwrap();
        let file = TokenFile::new(path.clone());
        file.bearer().unwrap();
        std::fs::write(&path, " \n").unwrap();
        assert_eq!(file.bearer().unwrap(), "Bearer one");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.bearer().unwrap(), "Bearer one");
        let long_ago = Instant::now().checked_sub(STANDS_IN).unwrap();
        file.read.lock().as_mut().unwrap().seen = long_ago;
        assert!(file.bearer().is_err());
    }
}
