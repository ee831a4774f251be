//! Whether to poll on for a moment before sleeping: waking a halted CPU costs
//! more than relaying a small message (performance.md 2.6). Pure.

/// Longest spin, and the one to begin with, in us.
pub const SPIN_MAX_US: u64 = 200;
const SPIN_FIRST_US: u64 = 100;
/// A spin this short is not worth its CPU: rest, and begin anew.
const SPIN_MIN_US: u64 = 12;
const REST_US: u64 = 1_000_000;
/// Two polls this far apart: somebody else had the CPU.
const GAP_MAX_US: u64 = 1_000;

/// Spins after small messages, less when it brings nothing.
#[derive(Debug)]
pub struct Spin {
    allowed: bool,
    length_us: u64,
    until_us: Option<u64>,
    polled_us: u64,
    rests_until_us: u64,
    spun_us: u64,
}

impl Spin {
    /// `allowed` where a CPU is there for each engine thread.
    pub fn new(allowed: bool) -> Self {
        Self {
            allowed,
            length_us: SPIN_FIRST_US,
            until_us: None,
            polled_us: 0,
            rests_until_us: 0,
            spun_us: 0,
        }
    }

    /// Whether it ever spins.
    pub fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// A round moved something; `small` when that was no bulk.
    pub fn worked(&mut self, now_us: u64, small: bool) {
        if self.until_us.take().is_some() {
            self.count(now_us);
            self.length_us = (self.length_us * 2).min(SPIN_MAX_US);
        }
        if self.allowed && small && now_us >= self.rests_until_us {
            self.until_us = Some(now_us + self.length_us);
            self.polled_us = now_us;
        }
    }

    /// Whether a spin has begun.
    pub fn is_on(&self) -> bool {
        self.until_us.is_some()
    }

    /// Nothing is to be done: whether to poll again at once.
    pub fn polls_on(&mut self, now_us: u64) -> bool {
        let Some(until_us) = self.until_us else {
            return false;
        };
        let gap_us = now_us - self.polled_us;
        self.count(now_us);
        if now_us < until_us && gap_us < GAP_MAX_US {
            return true;
        }
        self.until_us = None;
        self.length_us /= 2;
        if self.length_us < SPIN_MIN_US || gap_us >= GAP_MAX_US {
            self.length_us = SPIN_FIRST_US;
            self.rests_until_us = now_us + REST_US;
        }
        false
    }

    /// Time spun so far, in us.
    pub fn spun_us(&self) -> u64 {
        self.spun_us
    }

    fn count(&mut self, now_us: u64) {
        self.spun_us += (now_us - self.polled_us).min(GAP_MAX_US);
        self.polled_us = now_us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_by_itself_and_is_off_in_silence() {
        let mut spin = Spin::new(true);
        assert!(!spin.polls_on(0), "not before a message");
        spin.worked(10, true);
        assert!(spin.polls_on(11) && spin.polls_on(100));
        assert!(!spin.polls_on(110), "100 us are over");
        assert!(!spin.polls_on(111), "and over they are");
        assert_eq!(spin.spun_us(), 100);
    }

    #[test]
    fn in_vain_it_shortens_and_rests() {
        let (mut spin, mut now, mut rounds) = (Spin::new(true), 0, 0);
        while spin.rests_until_us == 0 {
            spin.worked(now, true);
            while spin.polls_on(now) {
                now += 1;
            }
            rounds += 1;
        }
        assert!(rounds <= 5 && now < 250, "{rounds} spins, {now} us");
        spin.worked(now, true);
        assert!(!spin.polls_on(now), "it rests");
        now += REST_US;
        spin.worked(now, true);
        assert!(spin.polls_on(now + 1), "and tries again");
    }

    #[test]
    fn never_after_bulk_nor_where_it_is_not_allowed_nor_preempted() {
        let mut spin = Spin::new(true);
        spin.worked(0, false);
        assert!(!spin.polls_on(1));
        spin.worked(0, true);
        assert!(!spin.polls_on(GAP_MAX_US), "somebody else had the CPU");
        spin.worked(GAP_MAX_US + 1, true);
        assert!(!spin.polls_on(GAP_MAX_US + 2));
        let mut forbidden = Spin::new(false);
        forbidden.worked(0, true);
        assert!(!forbidden.polls_on(1));
    }
}
