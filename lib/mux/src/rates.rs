//! Token bucket: so many per second, all of them at once at most.

/// Allows `per_second` at any instant, refilled evenly.
#[derive(Debug)]
pub(crate) struct Bucket {
    per_second: u32,
    /// Thousandths of a token, so that a millisecond refills exactly `per_second` of them.
    tokens_milli: u64,
    refilled_ms: u64,
}

impl Bucket {
    pub(crate) fn new(per_second: u32) -> Bucket {
        Bucket {
            per_second,
            tokens_milli: u64::from(per_second) * 1_000,
            refilled_ms: 0,
        }
    }

    pub(crate) fn per_second(&self) -> u32 {
        self.per_second
    }

    /// Takes one, if there is one.
    pub(crate) fn take(&mut self, now_ms: u64) -> bool {
        let full = u64::from(self.per_second) * 1_000;
        // A second fills the bucket, so that longer silences need no larger product.
        let elapsed_ms = now_ms.saturating_sub(self.refilled_ms).min(1_000);
        self.refilled_ms = self.refilled_ms.max(now_ms);
        self.tokens_milli = (self.tokens_milli + elapsed_ms * u64::from(self.per_second)).min(full);
        match self.tokens_milli.checked_sub(1_000) {
            Some(rest) => {
                self.tokens_milli = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_n_at_once_and_refills_evenly() {
        let mut bucket = Bucket::new(20);
        assert_eq!((0..25).filter(|_| bucket.take(1_000)).count(), 20);
        assert!(!bucket.take(1_049), "50 ms make one token");
        assert!(bucket.take(1_050));
        assert!(!bucket.take(1_050));
        assert_eq!((0..99).filter(|_| bucket.take(u64::MAX)).count(), 20);
        assert!(!bucket.take(0), "time that goes back refills nothing");
    }

    #[test]
    fn zero_allows_nothing() {
        assert!(!Bucket::new(0).take(10_000));
    }
}
