//! The memory budget that all sessions of a process share.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

/// Process-wide count of charged bytes against a limit, and the ladder of what to refuse.
///
/// Charging never blocks and never fails by itself: bytes that a peer had credit for must be
/// taken. The [`Pressure`] decides what is not begun.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
}

/// Rung of the ladder (percent of the limit in use).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Below 70 %.
    Normal,
    /// From 70 %: no window grows, idle ones are not topped up.
    NoGrowth,
    /// From 80 %: no new streams.
    NoStreams,
    /// From 90 %: new sessions are paced.
    PaceSessions,
    /// From 95 %: the largest stalled stream is aborted.
    Shed,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub const fn new(limit: u64) -> Budget {
        Budget {
            limit,
            used: AtomicU64::new(0),
        }
    }

    /// Bytes allowed.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes charged; may exceed the limit for a moment.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Where on the ladder the process stands.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let percent = u128::from(self.used()) * 100 / u128::from(self.limit.max(1));
        match percent {
            0..=69 => Pressure::Normal,
            70..=79 => Pressure::NoGrowth,
            80..=89 => Pressure::NoStreams,
            90..=94 => Pressure::PaceSessions,
            _ => Pressure::Shed,
        }
    }

    /// Charges bytes that must be held whatever the pressure.
    pub fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Charges `bytes` only if the budget stays below 70 % with them. For growth.
    #[must_use]
    pub fn try_charge(&self, bytes: u64) -> bool {
        let ceiling = self.limit / 10 * 7;
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|after| *after < ceiling)
            })
            .is_ok()
    }

    /// Returns bytes charged before.
    pub fn release(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "released {bytes} of {before} charged");
    }
}

/// One session's share. It touches the shared counter once per [`ACCOUNT_STEP_BYTES`], so that
/// bytes of many sessions do not fight for a cache line.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) budget: Arc<Budget>,
    held: usize,
    charged: usize,
}

const ACCOUNT_STEP_BYTES: usize = 64 << 10;
/// Charged to every session for its own structures; small messages pass below it.
const ACCOUNT_BASE_BYTES: usize = 4 << 10;

impl Account {
    pub(crate) fn new(budget: Arc<Budget>) -> Account {
        let mut account = Account {
            budget,
            held: 0,
            charged: 0,
        };
        account.charge_to(ACCOUNT_BASE_BYTES);
        account
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.held += bytes;
        if self.held > self.charged {
            self.charge_to(self.held.next_multiple_of(ACCOUNT_STEP_BYTES));
        }
    }

    pub(crate) fn sub(&mut self, bytes: usize) {
        debug_assert!(self.held >= bytes, "returned {bytes} of {}", self.held);
        self.held = self.held.saturating_sub(bytes);
        // One step stays charged, so that a session on the edge does not go back and forth.
        let keep = match self.held {
            0..=ACCOUNT_BASE_BYTES => ACCOUNT_BASE_BYTES,
            held => held.next_multiple_of(ACCOUNT_STEP_BYTES) + ACCOUNT_STEP_BYTES,
        };
        if self.charged > keep {
            self.charge_to(keep);
        }
    }

    fn charge_to(&mut self, bytes: usize) {
        match bytes.checked_sub(self.charged) {
            Some(more) => self.budget.charge(more as u64),
            None => self.budget.release((self.charged - bytes) as u64),
        }
        self.charged = bytes;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.charge_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ladder_turns_exactly_at_its_rungs() {
        let budget = Budget::new(1_000);
        let at = |used| {
            budget.charge(used);
            let pressure = budget.pressure();
            budget.release(used);
            pressure
        };
        assert_eq!(at(699), Pressure::Normal);
        assert_eq!(at(700), Pressure::NoGrowth);
        assert_eq!(at(799), Pressure::NoGrowth);
        assert_eq!(at(800), Pressure::NoStreams);
        assert_eq!(at(900), Pressure::PaceSessions);
        assert_eq!(at(949), Pressure::PaceSessions);
        assert_eq!(at(950), Pressure::Shed);
        assert_eq!(at(5_000), Pressure::Shed);
    }

    #[test]
    fn account_charges_in_steps_and_returns_everything() {
        let budget = Arc::new(Budget::new(1 << 30));
        let mut account = Account::new(Arc::clone(&budget));
        account.add(4 << 10);
        assert_eq!(budget.used(), 4 << 10);
        account.add(1);
        assert_eq!(budget.used(), 64 << 10);
        account.add(60 << 10);
        assert_eq!(budget.used(), 128 << 10);
        account.sub(60 << 10);
        assert_eq!(budget.used(), 128 << 10);
        account.sub(1);
        assert_eq!(budget.used(), 4 << 10);
        drop(account);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn growth_stops_below_seventy_percent() {
        let budget = Budget::new(1_000);
        assert!(budget.try_charge(699));
        assert!(!budget.try_charge(1));
        assert!(!budget.try_charge(u64::MAX));
        assert_eq!(budget.used(), 699);
    }
}
