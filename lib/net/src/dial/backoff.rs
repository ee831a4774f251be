//! How long to wait before dialling again.

use std::time::Duration;

/// First step of the exponential.
const BASE: Duration = Duration::from_secs(1);
/// A session that lived this long was healthy: the count starts anew.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// At least this long after 401 or 403: a wrong credential does not become right by asking.
pub const REFUSED_WAIT_MIN: Duration = Duration::from_secs(30);
/// Longest `Retry-After` that is obeyed; a larger one counts as this.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Why the last attempt or session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setback {
    /// Any failure, or a session that ended.
    Ordinary,
    /// 401 or 403.
    Refused,
    /// The hub said when to come back; others were told the same, so the wait is spread.
    RetryAfter(Duration),
}

/// Exponential backoff with full jitter. Randomness is an argument.
#[derive(Clone, Debug)]
pub struct Backoff {
    ceiling: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits at most `ceiling` (`--max-retry`, 60 s by default) on its own account.
    #[must_use]
    pub fn new(ceiling: Duration) -> Backoff {
        Backoff {
            ceiling,
            failures: 0,
        }
    }

    /// The wait after a setback: `rand(0, min(ceiling, 1 s * 2^n))`, longer where the hub or the
    /// kind of failure demands it. `random` is uniform over all of u64.
    #[must_use]
    pub fn next(&mut self, setback: Setback, random: u64) -> Duration {
        let step = BASE.saturating_mul(1u32.checked_shl(self.failures.min(31)).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        let jitter = scale(step.min(self.ceiling), random);
        match setback {
            Setback::Ordinary => jitter,
            Setback::Refused => REFUSED_WAIT_MIN + jitter,
            Setback::RetryAfter(advice) => advice.min(RETRY_AFTER_MAX) + jitter,
        }
    }

    /// A session ended after `lived`; from 30 s on the count starts anew.
    pub fn session_ended(&mut self, lived: Duration) {
        if lived >= HEALTHY_AFTER {
            self.failures = 0;
        }
    }

    /// Setbacks since the last healthy session.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// `random / 2^64` of `limit`.
fn scale(limit: Duration, random: u64) -> Duration {
    let nanos = (limit.as_nanos() * u128::from(random)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_ceiling_and_stays_there() {
        let mut backoff = Backoff::new(Duration::from_secs(60));
        let waits: Vec<u128> = (0..40)
            .map(|_| backoff.next(Setback::Ordinary, u64::MAX).as_millis())
            .collect();
        assert_eq!(waits[..7], [999, 1999, 3999, 7999, 15_999, 31_999, 59_999]);
        assert!(waits[7..].iter().all(|w| *w == 59_999));
        assert_eq!(backoff.next(Setback::Ordinary, 0), Duration::ZERO);
    }

    #[test]
    fn ten_drops_of_healthy_sessions_wait_at_most_a_second_each() {
        let mut backoff = Backoff::new(Duration::from_secs(60));
        for _ in 0..10 {
            backoff.session_ended(Duration::from_secs(31));
            assert!(backoff.next(Setback::Ordinary, u64::MAX) <= Duration::from_secs(1));
        }
        backoff.session_ended(Duration::from_secs(29));
        assert!(backoff.next(Setback::Ordinary, u64::MAX) > Duration::from_secs(1));
    }

    #[test]
    fn advice_and_refusal_are_obeyed() {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        assert!(backoff.next(Setback::Refused, 0) >= Duration::from_secs(30));
        let wait = backoff.next(Setback::RetryAfter(Duration::from_secs(7)), u64::MAX);
        assert!(wait >= Duration::from_secs(7) && wait <= Duration::from_secs(12));
        let absurd = backoff.next(Setback::RetryAfter(Duration::MAX), 0);
        assert_eq!(absurd, RETRY_AFTER_MAX);
    }
}
