//! Whose records fill the spool: once it is half full, who wrote a quarter of it writes no more, so
//! that one caller's flood does not refuse the others (security.md, T31).

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use parking_lot::Mutex;

/// Callers that are told apart; further ones have one share together.
const CALLERS_MAX: usize = 4_096;
/// Stands for those.
const OTHERS: u64 = 0;

/// Records that wait, by caller.
pub struct Shares {
    spool_bytes: u64,
    hasher: RandomState,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    waiting: u64,
    callers: HashMap<u64, u64>,
}

impl Shares {
    /// Of a spool with room for so many bytes, which is empty.
    pub fn new(spool_bytes: u64) -> Self {
        Self {
            spool_bytes,
            hasher: RandomState::new(),
            counts: Mutex::default(),
        }
    }

    /// Whether `caller` may add `bytes`; they count if so.
    pub fn take(&self, caller: &str, bytes: u64) -> bool {
        let mut counts = self.counts.lock();
        let mut key = self.hasher.hash_one(caller);
        if counts.callers.len() >= CALLERS_MAX && !counts.callers.contains_key(&key) {
            key = OTHERS;
        }
        let is_half_full = counts.waiting >= self.spool_bytes / 2;
        let own = counts.callers.entry(key).or_default();
        if is_half_full && *own + bytes > self.spool_bytes / 4 {
            return false;
        }
        *own += bytes;
        counts.waiting += bytes;
        true
    }

    /// Control took records, and so many bytes wait. Whose is known again once few do.
    pub fn shipped(&self, waiting: u64) {
        let mut counts = self.counts.lock();
        counts.waiting = waiting;
        if waiting <= self.spool_bytes / 8 {
            counts.callers.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPOOL: u64 = 800;

    #[test]
    fn a_flood_of_one_leaves_half_of_the_spool_to_the_others() {
        let shares = Shares::new(SPOOL);
        let written = (0..SPOOL).take_while(|_| shares.take("flood", 1)).count();
        assert_eq!(written as u64, SPOOL / 2);
        assert!(shares.take("ana", SPOOL / 4), "a quarter is everybody's");
        assert!(!shares.take("ana", 1));
        assert!(shares.take("ben", 1));
        shares.shipped(SPOOL / 2);
        assert!(!shares.take("flood", 1), "half of it still waits");
        shares.shipped(SPOOL / 2 - 1);
        assert!(shares.take("flood", 1));
        shares.shipped(SPOOL / 8);
        assert!(shares.take("flood", SPOOL / 2));
        assert!(!shares.take("flood", 1), "its count begins anew");
    }

    #[test]
    fn callers_beyond_those_told_apart_share_one_part() {
        let shares = Shares::new(u64::MAX);
        for number in 0..2 * CALLERS_MAX {
            assert!(shares.take(&number.to_string(), 1));
        }
        assert!(shares.counts.lock().callers.len() <= CALLERS_MAX + 1);
        assert_eq!(shares.counts.lock().callers[&OTHERS], CALLERS_MAX as u64);
    }
}
