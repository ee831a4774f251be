//! The files of the spool: segments by number, a lock, and a note of what control has.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

use culvert_audit::{Book, HEADER_BYTES, Header, Limits, Recovery, scan};
use culvert_engine::Backend;

use crate::runtime::{DurableFile, OWNERS_ALONE, sync_directory};

const ENDING: &str = "seg";
const NOTE: &str = "acked";
const LOCK: &str = "lock";

/// The directory, held by this process.
pub struct Disk {
    dir: PathBuf,
    backend: Backend,
    note: File,
    _lock: File,
}

impl Disk {
    /// Makes the directory where it is missing.
    ///
    /// # Errors
    /// The operating system's; also when another process holds it.
    pub fn open(dir: &Path, backend: Backend) -> io::Result<Self> {
        let mut made = fs::DirBuilder::new();
        made.recursive(true).mode(0o700).create(dir)?;
        let file = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            options.mode(OWNERS_ALONE).open(dir.join(name))
        };
        let lock = file(LOCK)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|why| match why {
            rustix::io::Errno::WOULDBLOCK => {
                io::Error::new(ErrorKind::AddrInUse, "another data plane writes there")
            }
            why => why.into(),
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            backend,
            note: file(NOTE)?,
            _lock: lock,
        })
    }

    /// The books of what it holds.
    ///
    /// # Errors
    /// The operating system's.
    pub fn recover(&self, limits: Limits) -> io::Result<Book> {
        let mut found = Vec::new();
        for number in numbers(&self.dir)? {
            match first(&self.dir, number) {
                Ok(first) => found.push((number, first)),
                // A crash came before its begin was durable: nothing in it was promised.
                Err(why) => tracing::info!(number, %why, "a file of the audit spool is left out"),
            }
        }
        let mut recovery = Recovery::new(limits);
        for (place, (number, _)) in found.iter().enumerate() {
            let bytes = fs::read(path(&self.dir, *number))?;
            let scanned = scan(&bytes).map_err(io::Error::other)?;
            for damaged in &scanned.damaged {
                tracing::error!(
                    number,
                    from = damaged.at.start,
                    to = damaged.at.end,
                    "bytes of the audit spool are damaged: records in them are lost"
                );
            }
            let next = found.get(place + 1).map(|(_, first)| *first);
            recovery.take(*number, &scanned, next);
        }
        Ok(recovery.finish(read_note(&self.note)))
    }

    /// Makes a segment with room for `bytes`.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn create(&self, number: u64, bytes: u64) -> io::Result<DurableFile> {
        let path = path(&self.dir, number);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(OWNERS_ALONE)
            .open(&path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // Where room cannot be kept, a full disk is met when it is written.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(why) => return Err(why.into()),
        }
        sync_directory(&self.dir).await?;
        Ok(DurableFile::new(self.backend, file))
    }

    /// Deletes a segment.
    pub fn delete(&self, number: u64) {
        delete(&self.dir, number);
    }

    /// Notes what control has. Lost, records are sent again and known again.
    pub fn note(&self, acked: u64) {
        let mut bytes = acked.to_be_bytes().to_vec();
        bytes.extend_from_slice(&(!acked).to_be_bytes());
        if let Err(why) = self.note.write_all_at(&bytes, 0) {
            tracing::debug!(%why, "what control has of the audit spool is not noted");
        }
    }
}

/// Deletes a segment, if it is there.
fn delete(dir: &Path, number: u64) {
    if let Err(why) = fs::remove_file(path(dir, number))
        && why.kind() != ErrorKind::NotFound
    {
        tracing::debug!(%why, number, "a segment of the audit spool stays");
    }
}

/// Bytes of a segment.
///
/// # Errors
/// The operating system's.
pub fn read(dir: &Path, number: u64, offset: u64, end: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(end.saturating_sub(offset)).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    File::open(path(dir, number))?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.{ENDING}"))
}

/// Of the segments, in rising order.
fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is_segment = path.extension().is_some_and(|it| it == ENDING);
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let number = stem.and_then(|stem| u64::from_str_radix(stem, 16).ok());
        numbers.extend(number.filter(|_| is_segment));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The first sequence of a segment. One whose begin was never written is deleted.
fn first(dir: &Path, number: u64) -> io::Result<u64> {
    let mut begin = [0; HEADER_BYTES];
    let read = File::open(path(dir, number))?.read_exact_at(&mut begin, 0);
    if read.is_err() || begin == [0; HEADER_BYTES] {
        delete(dir, number);
    }
    let header = Header::decode(&begin).map_err(io::Error::other)?;
    Ok(header.first)
}

fn read_note(note: &File) -> u64 {
    let mut bytes = [0; 16];
    if note.read_exact_at(&mut bytes, 0).is_err() {
        return 0;
    }
    let value = u128::from_be_bytes(bytes);
    let acked = u64::try_from(value >> 64).unwrap_or_default();
    match value == (u128::from(acked) << 64 | u128::from(!acked)) {
        true => acked,
        false => 0,
    }
}
