//! Ids: which live stream an id names, and which ids the peer has used up.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

/// Ids below the newest that are remembered one by one; older ones count as used.
pub(crate) const SEEN_IDS_MAX: u32 = 4_096;
const SEEN_WORDS: usize = SEEN_IDS_MAX as usize / 64;

/// Map from stream id to slab slot: open addressing, linear probing, backward-shift deletion.
#[derive(Debug)]
pub(crate) struct IdMap {
    /// (id, slot); id 0 is a free place. The length is a power of two, or 0.
    places: Vec<(u32, u32)>,
    len: usize,
    multiplier: u64,
}

impl IdMap {
    pub(crate) fn new(seed: u64) -> IdMap {
        IdMap {
            places: Vec::new(),
            len: 0,
            multiplier: (seed ^ 0x9E37_79B9_7F4A_7C15) | 1,
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.places.capacity() * size_of::<(u32, u32)>()
    }

    /// Multiply-shift: 2-universal for a random odd multiplier.
    fn home(&self, id: u32) -> usize {
        let bits = self.places.len().trailing_zeros();
        let hash = u64::from(id).wrapping_mul(self.multiplier);
        usize::try_from(hash >> (64 - bits)).unwrap_or(0)
    }

    pub(crate) fn get(&self, id: u32) -> Option<u32> {
        if self.places.is_empty() {
            return None;
        }
        let mask = self.places.len() - 1;
        let mut at = self.home(id);
        loop {
            match self.places[at] {
                (0, _) => return None,
                (found, slot) if found == id => return Some(slot),
                _ => at = (at + 1) & mask,
            }
        }
    }

    /// `id` is not 0 and not in the map.
    pub(crate) fn insert(&mut self, id: u32, slot: u32) {
        if (self.len + 1) * 2 > self.places.len() {
            let larger = vec![(0, 0); (self.places.len() * 2).max(16)];
            for (id, slot) in core::mem::replace(&mut self.places, larger) {
                if id != 0 {
                    self.place(id, slot);
                }
            }
        }
        self.place(id, slot);
        self.len += 1;
    }

    fn place(&mut self, id: u32, slot: u32) {
        let mask = self.places.len() - 1;
        let mut at = self.home(id);
        while self.places[at].0 != 0 {
            at = (at + 1) & mask;
        }
        self.places[at] = (id, slot);
    }

    pub(crate) fn remove(&mut self, id: u32) {
        if self.places.is_empty() {
            return;
        }
        let mask = self.places.len() - 1;
        let mut hole = self.home(id);
        while self.places[hole].0 != id {
            if self.places[hole].0 == 0 {
                return;
            }
            hole = (hole + 1) & mask;
        }
        self.len -= 1;
        let mut next = (hole + 1) & mask;
        while self.places[next].0 != 0 {
            // An entry may move back into the hole unless its home lies after the hole.
            let from_home = next.wrapping_sub(self.home(self.places[next].0)) & mask;
            if from_home >= next.wrapping_sub(hole) & mask {
                self.places[hole] = self.places[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.places[hole] = (0, 0);
    }
}

/// The peer's ids that were used, in fixed memory: a bitmap of the newest [`SEEN_IDS_MAX`].
/// Go peers open out of order, so a single high-water mark would call them cheats.
#[derive(Debug, Default)]
pub(crate) struct SeenIds {
    /// Ring of bits, made with the first id.
    bits: Option<Box<[u64; SEEN_WORDS]>>,
    newest: u32,
}

impl SeenIds {
    /// Notes an id of the peer; `false` if it was used before or lies too far back to tell.
    pub(crate) fn insert(&mut self, id: u32) -> bool {
        let index = id / 2;
        let Some(bits) = self.bits.as_deref_mut() else {
            let mut bits = Box::new([0; SEEN_WORDS]);
            set(&mut bits, index);
            self.bits = Some(bits);
            self.newest = index;
            return true;
        };
        if index > self.newest {
            forget(bits, self.newest, index);
            self.newest = index;
        } else if self.newest - index >= SEEN_IDS_MAX {
            return false;
        }
        set(bits, index)
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        let index = id / 2;
        match &self.bits {
            None => false,
            Some(_) if index > self.newest => false,
            Some(_) if self.newest - index >= SEEN_IDS_MAX => true,
            Some(bits) => bits[word(index)] & (1 << (index % 64)) != 0,
        }
    }
}

fn word(index: u32) -> usize {
    (index / 64) as usize % SEEN_WORDS
}

fn set(bits: &mut [u64; SEEN_WORDS], index: u32) -> bool {
    let bit = 1 << (index % 64);
    let fresh = bits[word(index)] & bit == 0;
    bits[word(index)] |= bit;
    fresh
}

/// Clears the places of the ids in `newest + 1 ..= index`.
fn forget(bits: &mut [u64; SEEN_WORDS], newest: u32, index: u32) {
    if index - newest >= SEEN_IDS_MAX {
        bits.fill(0);
        return;
    }
    let mut at = newest + 1;
    while at <= index {
        let whole = at.is_multiple_of(64) && index - at >= 63;
        if whole {
            bits[word(at)] = 0;
        } else {
            bits[word(at)] &= !(1 << (at % 64));
        }
        match at.checked_add(if whole { 64 } else { 1 }) {
            Some(next) => at = next,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    proptest! {
        #[test]
        fn map_behaves_like_a_hash_map(
            seed: u64,
            steps in prop::collection::vec((any::<bool>(), 1_u32..60), 0..400),
        ) {
            let mut map = IdMap::new(seed);
            let mut oracle = HashMap::new();
            for (slot, (add, id)) in (0..).zip(steps) {
                if add && !oracle.contains_key(&id) {
                    map.insert(id, slot);
                    oracle.insert(id, slot);
                } else if !add {
                    map.remove(id);
                    oracle.remove(&id);
                }
                for id in 0..64 {
                    prop_assert_eq!(map.get(id), oracle.get(&id).copied());
                }
            }
        }

        #[test]
        fn seen_ids_behave_like_a_set_within_reach(
            steps in prop::collection::vec(prop_oneof![0_u32..300, 4_000_u32..4_300, 8_000_u32..9_000, any::<u32>()], 0..200),
        ) {
            let mut seen = SeenIds::default();
            let mut oracle = HashSet::new();
            let mut newest = 0;
            for index in steps {
                let index = index / 2;
                let reachable = index > newest || newest - index < SEEN_IDS_MAX;
                let expected = reachable && !oracle.contains(&index);
                prop_assert_eq!(seen.contains(index * 2), !expected && !(oracle.is_empty()));
                let first = oracle.is_empty();
                if first { newest = index; }
                prop_assert_eq!(seen.insert(index * 2), expected || first);
                newest = newest.max(index);
                oracle.insert(index);
            }
        }
    }
}
