//! A directory as a store: `<dir>/<name>/pair.json`, all of it closed to others.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use culvert_net::crypto::{self, KeyError, random_bytes, sha256};
use culvert_proto::pair::RendezvousId;
use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use super::{
    DOCUMENT_BYTES_MAX, DOCUMENTS_MAX, Document, Found, Revision, Store, StoreError,
    check_document_name,
};

/// The file of a document.
const FILE: &str = "pair.json";
/// The file that writers lock.
const LOCK: &str = ".lock";
/// Longest wait for another writer.
const LOCK_MAX: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Documents in a directory of ours, mode 0700, each file 0600.
#[derive(Clone)]
pub struct FileStore {
    dir: PathBuf,
}

impl FileStore {
    /// The store in `dir`. The directory is made with the first document.
    #[must_use]
    pub fn new(dir: PathBuf) -> FileStore {
        FileStore { dir }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a further file beside a document, such as a certificate for another program: whole or
    /// not at all, mode 0600.
    ///
    /// # Errors
    /// When it cannot be written, or others can get at the directory.
    pub fn write_beside(
        &self,
        name: &str,
        file: &str,
        bytes: &[u8],
    ) -> Result<PathBuf, StoreError> {
        check_document_name(name)?;
        let dir = self.dir.join(name);
        make_private(&self.dir)?;
        make_private(&dir)?;
        let path = dir.join(file);
        replace(&dir, &path, bytes)?;
        Ok(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name).join(FILE)
    }

    fn get(&self, name: &str) -> Result<Option<Document>, StoreError> {
        check_document_name(name)?;
        if !check_private(&self.dir)? || !check_private(&self.dir.join(name))? {
            return Ok(None);
        }
        let path = self.path(name);
        let Some(bytes) = read_file(&path)? else {
            return Ok(None);
        };
        Ok(Some(Document {
            name: name.to_owned(),
            revision: revision(&bytes),
            bytes,
        }))
    }

    fn get_all(&self) -> Result<Vec<Found>, StoreError> {
        if !check_private(&self.dir)? {
            return Ok(Vec::new());
        }
        let mut documents = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| io_error(&self.dir, e))? {
            let entry = entry.map_err(|e| io_error(&self.dir, e))?;
            let name = entry.file_name();
            let Some(name) = name
                .to_str()
                .filter(|name| check_document_name(name).is_ok())
            else {
                continue;
            };
            if !entry.path().join(FILE).exists() {
                continue;
            }
            if documents.len() == DOCUMENTS_MAX {
                let place = self.place();
                return Err(StoreError::TooMany { place });
            }
            let found = self.get(name).transpose();
            documents.extend(found.map(|got| got.map_err(|why| (name.to_owned(), why))));
        }
        Ok(documents)
    }

    fn put(
        &self,
        name: &str,
        bytes: &[u8],
        expected: Option<&Revision>,
    ) -> Result<Revision, StoreError> {
        check_document_name(name)?;
        if bytes.len() > DOCUMENT_BYTES_MAX {
            let name = name.to_owned();
            return Err(StoreError::TooLong { name });
        }
        make_private(&self.dir)?;
        let _lock = self.lock()?;
        self.check_revision(name, expected)?;
        let dir = self.dir.join(name);
        make_private(&dir)?;
        replace(&dir, &self.path(name), bytes)?;
        Ok(revision(bytes))
    }

    fn take_away(&self, name: &str, expected: &Revision) -> Result<(), StoreError> {
        check_document_name(name)?;
        if !check_private(&self.dir)? {
            return Err(self.conflict(name));
        }
        let _lock = self.lock()?;
        self.check_revision(name, Some(expected))?;
        let path = self.path(name);
        fs::remove_file(&path).map_err(|e| io_error(&path, e))?;
        let dir = self.dir.join(name);
        // What lies beside it, such as certificates for other programs, stays.
        let _ = fs::remove_dir(&dir);
        sync_dir(&self.dir)
    }

    fn check_revision(&self, name: &str, expected: Option<&Revision>) -> Result<(), StoreError> {
        let seen = self.get(name)?.map(|document| document.revision);
        if seen.as_ref() == expected {
            return Ok(());
        }
        Err(self.conflict(name))
    }

    fn conflict(&self, name: &str) -> StoreError {
        StoreError::Conflict {
            place: self.place(),
            name: name.to_owned(),
        }
    }

    /// Only one process writes; readers need no lock, for files are replaced whole.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.dir.join(LOCK);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| io_error(&path, e))?;
        let since = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if since.elapsed() < LOCK_MAX => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let seconds = LOCK_MAX.as_secs();
                    return Err(StoreError::Locked { path, seconds });
                }
                Err(why) => return Err(io_error(&path, why.into())),
            }
        }
    }
}

impl Store for FileStore {
    fn place(&self) -> String {
        format!("file:{}", self.dir.display())
    }

    async fn all(&self) -> Result<Vec<Found>, StoreError> {
        let store = self.clone();
        off_thread(move || store.get_all()).await
    }

    async fn read(&self, name: &str) -> Result<Option<Document>, StoreError> {
        let (store, name) = (self.clone(), name.to_owned());
        off_thread(move || store.get(&name)).await
    }

    async fn write(
        &self,
        name: &str,
        bytes: &[u8],
        expected: Option<&Revision>,
    ) -> Result<Revision, StoreError> {
        let (store, name) = (self.clone(), name.to_owned());
        let (bytes, expected) = (Zeroizing::new(bytes.to_vec()), expected.cloned());
        off_thread(move || store.put(&name, &bytes, expected.as_ref())).await
    }

    async fn erase(&self, name: &str, expected: &Revision) -> Result<(), StoreError> {
        let (store, name, expected) = (self.clone(), name.to_owned(), expected.clone());
        off_thread(move || store.take_away(&name, &expected)).await
    }
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(gone) => Err(io_error(Path::new("file store"), io::Error::other(gone))),
    }
}

/// The document's own hash: an edit by hand is a new revision too.
fn revision(bytes: &[u8]) -> Revision {
    Revision(RendezvousId(sha256(bytes)).to_string())
}

fn read_file(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    match crypto::read_private_within(path, DOCUMENT_BYTES_MAX as u64) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(KeyError::Io { path, source }) => Err(StoreError::Io { path, source }),
        Err(KeyError::Mode { path, mode }) => Err(StoreError::Mode {
            path,
            mode,
            wanted: "0600",
        }),
        Err(KeyError::Owner { path, owner, uid }) => Err(StoreError::Owner { path, owner, uid }),
        Err(other) => Err(StoreError::damaged(&path.display().to_string(), &other)),
    }
}

/// Whole or not at all, also when the machine stops in the middle.
fn replace(dir: &Path, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let token = u64::from_be_bytes(random_bytes());
    let new = dir.join(format!(".new-{token:016x}"));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if let Err(why) = written {
        let _ = fs::remove_file(&new);
        return Err(io_error(path, why));
    }
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|e| io_error(dir, e))
}

fn make_private(dir: &Path) -> Result<(), StoreError> {
    if check_private(dir)? {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| io_error(dir, e))?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => Ok(()),
    }
}

/// Whether the directory is there; one that lets others in is refused.
fn check_private(dir: &Path) -> Result<bool, StoreError> {
    let meta = match fs::metadata(dir) {
        Ok(meta) => meta,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(why) => return Err(io_error(dir, why)),
    };
    let path = dir.to_owned();
    if !meta.is_dir() {
        return Err(io_error(dir, io::ErrorKind::NotADirectory.into()));
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let wanted = "0700";
        return Err(StoreError::Mode { path, mode, wanted });
    }
    let uid = rustix::process::geteuid().as_raw();
    let owner = meta.uid();
    if owner != uid {
        return Err(StoreError::Owner { path, owner, uid });
    }
    Ok(true)
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        path: path.to_owned(),
        source,
    }
}
