//! The signed copy of the state on disk: two slots, the older one is replaced.
//!
//! A slot is written to a temporary file, synced, renamed, and the rename is
//! synced. Whatever a crash leaves, one slot is whole; a copy counts only with
//! control's signature.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use culvert_engine::Backend;
use culvert_net::crypto::VerifyingKey;
use culvert_proto::limits::STATE_BYTES_MAX;
use culvert_proto::update::{Snapshot, SnapshotFile};

use crate::runtime::{sync_directory, write_durable};

const SLOTS: [&str; 2] = ["snapshot.a", "snapshot.b"];

/// The two slots in a state directory.
pub struct Copies {
    dir: PathBuf,
    backend: Backend,
    next: usize,
}

/// Why a slot does not count.
#[derive(Debug, thiserror::Error)]
pub enum BadCopy {
    /// It cannot be read.
    #[error("{path} cannot be read: {why}")]
    Io {
        /// The slot.
        path: PathBuf,
        /// What the system said.
        why: std::io::Error,
    },
    /// Its frame or content is damaged.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The slot.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// Its signature is not control's.
    #[error("{path} is refused: its signature does not match control's key")]
    Signature {
        /// The slot.
        path: PathBuf,
    },
}

/// What the slots hold.
pub struct Loaded {
    /// The newest whole snapshot.
    pub snapshot: Option<Snapshot>,
    /// Slots that do not count, and why.
    pub bad: Vec<BadCopy>,
}

impl Copies {
    /// The slots in `dir`.
    pub fn new(dir: PathBuf, backend: Backend) -> Self {
        Self {
            dir,
            backend,
            next: 0,
        }
    }

    /// Reads both slots; the next write replaces the one that is not returned.
    pub fn load(&mut self, key: VerifyingKey) -> Loaded {
        let mut loaded = Loaded {
            snapshot: None,
            bad: Vec::new(),
        };
        for (slot, name) in SLOTS.iter().enumerate() {
            match read(&self.dir.join(name), key) {
                Ok(None) => {}
                Ok(Some(found)) => {
                    let newest = loaded.snapshot.as_ref().map(|best| best.generation);
                    if newest.is_none_or(|newest| found.generation > newest) {
                        loaded.snapshot = Some(found);
                        self.next = 1 - slot;
                    }
                }
                Err(why) => loaded.bad.push(why),
            }
        }
        loaded
    }

    /// Writes `file` over the older slot.
    ///
    /// # Errors
    /// The operating system's; then the slots are as before.
    pub async fn save(&mut self, file: &SnapshotFile) -> std::io::Result<()> {
        let path = self.dir.join(SLOTS[self.next]);
        let temporary = path.with_extension("new");
        write_durable(self.backend, &temporary, file.encode()).await?;
        std::fs::rename(&temporary, &path)?;
        sync_directory(&self.dir).await?;
        self.next = 1 - self.next;
        Ok(())
    }
}

fn read(path: &Path, key: VerifyingKey) -> Result<Option<Snapshot>, BadCopy> {
    use std::io::Read as _;
    let io = |why| BadCopy::Io {
        path: path.to_owned(),
        why,
    };
    let damaged = |why: String| BadCopy::Damaged {
        path: path.to_owned(),
        why,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(io(why)),
    };
    let mut content = Vec::new();
    file.take(STATE_BYTES_MAX as u64 + 4096)
        .read_to_end(&mut content)
        .map_err(io)?;
    let content = Bytes::from(content);
    let copy = SnapshotFile::decode(&content).map_err(|why| damaged(why.to_string()))?;
    if copy.key_id != key.id() || !key.verify(&copy.body, &copy.signature) {
        return Err(BadCopy::Signature {
            path: path.to_owned(),
        });
    }
    let snapshot = Snapshot::decode(&copy.body).map_err(|why| damaged(why.to_string()))?;
    Ok(Some(snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Runtime, probe};
    use culvert_engine::IoEngine;
    use culvert_net::crypto::SigningKey;
    use culvert_proto::id::{ClusterId, Generation};
    use culvert_proto::update::ClusterState;
    use std::sync::Arc;

    struct Disk {
        dir: tempfile::TempDir,
        key: SigningKey,
        runtime: Runtime,
        copies: Copies,
    }

    impl Disk {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let backend = probe(IoEngine::Epoll).unwrap();
            Self {
                key: SigningKey::generate().unwrap(),
                runtime: Runtime::new(backend).unwrap(),
                copies: Copies::new(dir.path().to_owned(), backend),
                dir,
            }
        }

        fn save(&mut self, generation: u64) {
            let snapshot = Snapshot {
                generation: Generation(generation),
                clusters: vec![Arc::new(ClusterState::new(ClusterId::new("a").unwrap()))],
                ..Snapshot::default()
            };
            let body = snapshot.encode();
            let file = SnapshotFile {
                key_id: self.key.verifying_key().id(),
                signature: self.key.sign(&body),
                body,
            };
            self.runtime.block_on(self.copies.save(&file)).unwrap();
        }

        fn load(&mut self) -> (Option<u64>, usize) {
            let loaded = self.copies.load(self.key.verifying_key());
            (
                loaded.snapshot.map(|found| found.generation.0),
                loaded.bad.len(),
            )
        }

        fn newest(&self) -> PathBuf {
            self.dir.path().join(SLOTS[1 - self.copies.next])
        }
    }

    #[test]
    fn the_newest_of_two_counts_and_the_older_is_replaced() {
        let mut disk = Disk::new();
        assert_eq!(disk.load(), (None, 0));
        for generation in 1..=5 {
            disk.save(generation);
            assert_eq!(disk.load(), (Some(generation), 0));
        }
        std::fs::remove_file(disk.newest()).unwrap();
        assert_eq!(
            disk.load(),
            (Some(4), 0),
            "the other slot holds the one before"
        );
    }

    #[test]
    fn cut_anywhere_the_other_slot_counts() {
        let mut disk = Disk::new();
        disk.save(1);
        disk.save(2);
        let path = disk.newest();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(disk.load(), (Some(1), 1), "cut to {length} bytes");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert_eq!(disk.load(), (Some(1), 1), "one byte more");
    }

    #[test]
    fn no_flipped_bit_passes() {
        let mut disk = Disk::new();
        disk.save(1);
        disk.save(2);
        let path = disk.newest();
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &flipped).unwrap();
            assert_eq!(disk.load(), (Some(1), 1), "bit {bit}");
        }
    }

    #[test]
    fn another_key_or_swapped_slots_change_nothing_that_counts() {
        let mut disk = Disk::new();
        disk.save(1);
        disk.save(2);
        let other = SigningKey::generate().unwrap().verifying_key();
        let loaded = disk.copies.load(other);
        assert!(loaded.snapshot.is_none());
        assert!(
            loaded
                .bad
                .iter()
                .all(|why| matches!(why, BadCopy::Signature { .. }))
        );
        let slots = SLOTS.map(|slot| disk.dir.path().join(slot));
        let contents = [&slots[1], &slots[0]].map(|slot| std::fs::read(slot).unwrap());
        for (slot, content) in slots.iter().zip(contents) {
            std::fs::write(slot, content).unwrap();
        }
        assert_eq!(disk.load(), (Some(2), 0));
    }
}
