//! The signed copy of the state on disk: in each of two slots a snapshot, and behind it the updates
//! that followed, as control signed them.
//!
//! A snapshot is written to a temporary file, synced, and renamed over the older slot; an update is
//! appended to the newer one. Whatever a crash leaves, one slot has a whole snapshot, and of what
//! is behind it the part that bears control's signature counts.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use culvert_engine::Backend;
use culvert_net::crypto::VerifyingKey;
use culvert_proto::id::Generation;
use culvert_proto::limits::STATE_BYTES_MAX;
use culvert_proto::update::{
    ApplyError, DecodeError, FileError, SignedFrame, Snapshot, State, Update,
};

use crate::runtime::{append_durable, sync_directory, write_durable};

const SLOTS: [&str; 2] = ["snapshot.a", "snapshot.b"];
/// Updates behind one snapshot, before control is asked for another.
const UPDATES_MAX: u32 = 256;
/// Their bytes.
const UPDATES_BYTES_MAX: u64 = 8 << 20;

/// The two slots in a state directory.
pub struct Copies {
    dir: PathBuf,
    backend: Backend,
    next: usize,
    /// What the newer slot leads to.
    newest: Generation,
    /// The end of the newer slot, where it can go on.
    end: Option<End>,
}

/// Where updates are appended.
#[derive(Clone, Copy, Default)]
struct End {
    generation: Generation,
    /// Bytes that count.
    bytes: u64,
    /// Of them, the snapshot's.
    snapshot_bytes: u64,
    updates: u32,
}

/// Why a slot, or its end, does not count.
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
    /// What is behind so many bytes does not count.
    #[error("{path} is not used from byte {whole} on: {why}")]
    Refused {
        /// The slot.
        path: PathBuf,
        /// Bytes that count.
        whole: u64,
        /// What is wrong there.
        why: Wrong,
    },
}

/// What is wrong with a part of a slot.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// Its frame.
    #[error(transparent)]
    Frame(#[from] FileError),
    /// Its signature.
    #[error("its signature does not match control's key")]
    Signature,
    /// Its content.
    #[error("it is damaged: {0}")]
    Content(#[from] DecodeError),
    /// Its place.
    #[error("it is damaged: {0}")]
    Order(#[from] ApplyError),
}

/// What the slots hold.
pub struct Loaded {
    /// The newest state.
    pub state: Option<State>,
    /// What does not count, and why.
    pub bad: Vec<BadCopy>,
}

/// What became of an update.
#[derive(Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is durable.
    Kept,
    /// It does not fit behind what is there, or much is there already: only a snapshot helps.
    NeedSnapshot,
}

impl Copies {
    /// The slots in `dir`.
    pub fn new(dir: PathBuf, backend: Backend) -> Self {
        Self {
            dir,
            backend,
            next: 0,
            newest: Generation(0),
            end: None,
        }
    }

    /// Reads both slots; the next snapshot replaces the one that is not returned.
    pub fn load(&mut self, key: VerifyingKey) -> Loaded {
        let mut loaded = Loaded {
            state: None,
            bad: Vec::new(),
        };
        for (slot, name) in SLOTS.iter().enumerate() {
            let (found, bad) = read(&self.dir.join(name), key);
            loaded.bad.extend(bad);
            let Some((state, end)) = found else {
                continue;
            };
            let newest = loaded.state.as_ref().map(|best| best.generation);
            if newest.is_none_or(|newest| state.generation > newest) {
                loaded.state = Some(state);
                self.next = 1 - slot;
                self.newest = end.generation;
                self.end = Some(end);
            }
        }
        loaded
    }

    /// Writes `snapshot`, of `generation`, over the older slot.
    ///
    /// # Errors
    /// The operating system's; then the slots are as before.
    pub async fn save(
        &mut self,
        generation: Generation,
        snapshot: &SignedFrame,
    ) -> std::io::Result<()> {
        let path = self.dir.join(SLOTS[self.next]);
        let temporary = path.with_extension("new");
        let content = snapshot.encode();
        let end = End::default().behind(generation, content.len());
        // Until the rename is durable, no update may go behind the older one.
        self.end = None;
        write_durable(self.backend, &temporary, content).await?;
        std::fs::rename(&temporary, &path)?;
        if self.newest > generation {
            // An older state was asked for: the next start must not prefer what it replaced.
            std::fs::remove_file(self.dir.join(SLOTS[1 - self.next]))?;
        }
        sync_directory(&self.dir).await?;
        self.next = 1 - self.next;
        self.newest = generation;
        self.end = Some(end);
        Ok(())
    }

    /// Appends `update`, which leads to `generation`, to the newer slot.
    ///
    /// # Errors
    /// The operating system's; then the next one needs a snapshot.
    pub async fn append(
        &mut self,
        generation: Generation,
        update: &SignedFrame,
    ) -> std::io::Result<Appended> {
        let Some(end) = self.end.take() else {
            return Ok(Appended::NeedSnapshot);
        };
        if end.generation.0.checked_add(1) != Some(generation.0) {
            return Ok(Appended::NeedSnapshot);
        }
        let path = self.dir.join(SLOTS[1 - self.next]);
        let content = update.encode();
        let after = end.behind(generation, content.len());
        append_durable(self.backend, &path, content, end.bytes).await?;
        self.newest = generation;
        self.end = Some(after);
        Ok(match after.is_far() {
            true => Appended::NeedSnapshot,
            false => Appended::Kept,
        })
    }
}

impl End {
    /// Behind one more frame of `bytes`, which leads to `generation`.
    fn behind(self, generation: Generation, bytes: usize) -> Self {
        let bytes = self.bytes + bytes as u64;
        let is_first = self.snapshot_bytes == 0;
        Self {
            generation,
            bytes,
            snapshot_bytes: if is_first { bytes } else { self.snapshot_bytes },
            updates: self.updates + u32::from(!is_first),
        }
    }

    fn is_far(&self) -> bool {
        self.updates >= UPDATES_MAX || self.bytes - self.snapshot_bytes >= UPDATES_BYTES_MAX
    }
}

/// The state of a slot and its end, and what does not count of it.
fn read(path: &Path, key: VerifyingKey) -> (Option<(State, End)>, Option<BadCopy>) {
    let mut rest = match content(path) {
        Ok(content) => content,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return (None, None),
        Err(why) => {
            let path = path.to_owned();
            return (None, Some(BadCopy::Io { path, why }));
        }
    };
    let mut found = None;
    loop {
        match follow(&mut found, &mut rest, key) {
            Ok(true) => {}
            Ok(false) => return (found, None),
            Err(why) => {
                let whole = found.as_ref().map_or(0, |(_, end)| end.bytes);
                let path = path.to_owned();
                return (found, Some(BadCopy::Refused { path, whole, why }));
            }
        }
    }
}

fn content(path: &Path) -> std::io::Result<Bytes> {
    use std::io::Read as _;
    let bytes_max = STATE_BYTES_MAX as u64 + 2 * UPDATES_BYTES_MAX;
    let mut content = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(bytes_max).read_to_end(&mut content)?;
    Ok(content.into())
}

/// Takes the next frame into `found`: a snapshot first, then updates. `false` at the end.
fn follow(
    found: &mut Option<(State, End)>,
    rest: &mut Bytes,
    key: VerifyingKey,
) -> Result<bool, Wrong> {
    let left = rest.len();
    let Some(frame) = SignedFrame::take(rest)? else {
        return match found {
            Some(_) => Ok(false),
            None => Err(FileError::Length.into()),
        };
    };
    if frame.key_id != key.id() || !key.verify(&frame.body, &frame.signature) {
        return Err(Wrong::Signature);
    }
    let bytes = left - rest.len();
    if let Some((state, end)) = found {
        let generation = state.apply(&Update::decode(&frame.body)?)?;
        *end = end.behind(generation, bytes);
    } else {
        let state = State::from_snapshot(Snapshot::decode(&frame.body)?);
        let end = End::default().behind(state.generation, bytes);
        *found = Some((state, end));
    }
    Ok(true)
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

        fn signed(&self, body: Bytes) -> SignedFrame {
            SignedFrame {
                key_id: self.key.verifying_key().id(),
                signature: self.key.sign(&body),
                body,
            }
        }

        fn save(&mut self, generation: u64) {
            let snapshot = Snapshot {
                generation: Generation(generation),
                clusters: vec![Arc::new(ClusterState::new(ClusterId::new("a").unwrap()))],
                ..Snapshot::default()
            };
            let frame = self.signed(snapshot.encode());
            let saved = self.copies.save(snapshot.generation, &frame);
            self.runtime.block_on(saved).unwrap();
        }

        fn append(&mut self, generation: u64) -> Appended {
            let update = Update {
                generation: Generation(generation),
                ..Update::default()
            };
            let frame = self.signed(update.encode());
            let appended = self.copies.append(update.generation, &frame);
            self.runtime.block_on(appended).unwrap()
        }

        fn load(&mut self) -> (Option<u64>, usize) {
            let loaded = self.copies.load(self.key.verifying_key());
            (
                loaded.state.map(|found| found.generation.0),
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
    }

    #[test]
    fn updates_go_behind_the_newest_snapshot_and_count_with_it() {
        let mut disk = Disk::new();
        assert_eq!(disk.append(1), Appended::NeedSnapshot, "nothing to follow");
        disk.save(1);
        disk.save(2);
        for generation in 3..=6 {
            assert_eq!(disk.append(generation), Appended::Kept);
            assert_eq!(disk.load(), (Some(generation), 0));
        }
        assert_eq!(disk.append(8), Appended::NeedSnapshot, "7 is missing");
        assert_eq!(disk.append(7), Appended::NeedSnapshot, "until there is one");
        disk.save(8);
        assert_eq!(disk.append(9), Appended::Kept);
        assert_eq!(disk.load(), (Some(9), 0));
        // What is older is asked for, and nothing newer comes back.
        disk.save(3);
        assert_eq!(disk.load(), (Some(3), 0));
        assert_eq!(disk.append(4), Appended::Kept);
        assert_eq!(disk.load(), (Some(4), 0));
    }

    #[test]
    fn a_cut_or_flipped_update_ends_the_copy_before_it_and_the_next_takes_its_place() {
        let mut disk = Disk::new();
        disk.save(1);
        let ends: Vec<usize> = (2..=4)
            .map(|generation| {
                let end = std::fs::read(disk.newest()).unwrap().len();
                assert_eq!(disk.append(generation), Appended::Kept);
                end
            })
            .collect();
        let path = disk.newest();
        let whole = std::fs::read(&path).unwrap();
        // The generation of everything before a place.
        let before = |place: usize| Some(ends.iter().filter(|end| **end <= place).count() as u64);
        for length in ends[0] + 1..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let bad = usize::from(!ends.contains(&length));
            assert_eq!(disk.load(), (before(length), bad), "cut to {length}");
        }
        for bit in ends[0] * 8..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &flipped).unwrap();
            assert_eq!(disk.load(), (before(bit / 8), 1), "bit {bit}");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(disk.load(), (Some(3), 1));
        assert_eq!(disk.append(4), Appended::Kept);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        let mut swapped = whole[..ends[1]].to_vec();
        swapped.extend(&whole[ends[2]..]);
        std::fs::write(&path, swapped).unwrap();
        assert_eq!(disk.load(), (Some(2), 1), "one is missing");
    }

    #[test]
    fn behind_many_updates_a_snapshot_is_asked_for() {
        let mut disk = Disk::new();
        disk.save(1);
        let last = u64::from(UPDATES_MAX) + 1;
        for generation in 2..last {
            assert_eq!(disk.append(generation), Appended::Kept);
        }
        assert_eq!(disk.append(last), Appended::NeedSnapshot);
        assert_eq!(disk.load(), (Some(last), 0), "kept all the same");
        disk.save(last);
        assert_eq!(disk.append(last + 1), Appended::Kept);
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
        assert!(loaded.state.is_none());
        let is_signature = |bad: &BadCopy| {
            let why = Wrong::Signature;
            matches!(
                bad,
                BadCopy::Refused {
                    whole: 0,
                    why: Wrong::Signature,
                    ..
                }
            ) && bad.to_string().ends_with(&why.to_string())
        };
        assert!(loaded.bad.iter().all(is_signature));
        let slots = SLOTS.map(|slot| disk.dir.path().join(slot));
        let contents = [&slots[1], &slots[0]].map(|slot| std::fs::read(slot).unwrap());
        for (slot, content) in slots.iter().zip(contents) {
            std::fs::write(slot, content).unwrap();
        }
        assert_eq!(disk.load(), (Some(2), 0));
    }
}
