//! How long to wait before the hub is asked again: pure.

use std::time::Duration;

/// What a hub may ask for, in seconds (C-11).
const SECONDS_MIN: u64 = 2;
const SECONDS_MAX: u64 = 30;
/// What a word to slow down adds (RFC 8628, 3.5).
const SLOWER_SECONDS: u64 = 5;

/// What came of the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// An answer: nobody decided yet.
    Answer,
    /// The hub wants to be asked less often.
    SlowDown,
    /// No hub, or one in trouble.
    Nothing,
}

/// The pace of one request.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    seconds: u64,
    /// In a row.
    failures: u32,
}

impl Pace {
    /// As the hub says, within bounds.
    pub fn new(told_seconds: u64) -> Self {
        Self {
            seconds: told_seconds.clamp(SECONDS_MIN, SECONDS_MAX),
            failures: 0,
        }
    }

    /// The time to wait now.
    pub fn next(&mut self, came: Came) -> Duration {
        match came {
            Came::Answer => self.failures = 0,
            Came::SlowDown => {
                self.failures = 0;
                self.seconds = (self.seconds + SLOWER_SECONDS).min(SECONDS_MAX);
            }
            Came::Nothing => self.failures = self.failures.saturating_add(1),
        }
        let doubled = self.seconds << self.failures.min(5);
        Duration::from_secs(doubled.min(SECONDS_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_stays_between_two_and_thirty_seconds() {
        for (told, waited) in [(0, 2), (1, 2), (5, 5), (30, 30), (31, 30), (u64::MAX, 30)] {
            let mut pace = Pace::new(told);
            assert_eq!(pace.next(Came::Answer).as_secs(), waited, "{told}");
        }
    }

    #[test]
    fn a_word_to_slow_down_is_obeyed_for_good_and_trouble_for_its_time() {
        let mut pace = Pace::new(5);
        let mut next = |came| pace.next(came).as_secs();
        assert_eq!((next(Came::SlowDown), next(Came::Answer)), (10, 10));
        let waits = [Came::Nothing; 4].map(&mut next);
        assert_eq!(waits, [20, 30, 30, 30]);
        assert_eq!(next(Came::Answer), 10);
        for _ in 0..10 {
            next(Came::SlowDown);
        }
        assert_eq!(next(Came::Answer), 30);
    }
}
