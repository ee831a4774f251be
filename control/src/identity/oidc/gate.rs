//! How often something is fetched: once in a while, whatever strangers send.

/// Keys are fetched anew at most once in this time.
const PAUSE_MS: u64 = 60_000;

/// Opens once a minute. The clock is an argument; one that was set back opens it.
#[derive(Default)]
pub struct Gate(Option<u64>);

impl Gate {
    /// Whether it is time; if so, the minute begins now.
    pub fn opens(&mut self, now_ms: u64) -> bool {
        let is_shut = self
            .0
            .is_some_and(|last| last <= now_ms && now_ms - last < PAUSE_MS);
        if !is_shut {
            self.0 = Some(now_ms);
        }
        !is_shut
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_opens_once_a_minute() {
        let mut gate = Gate::default();
        let opens = [0, 1, 59_999, 60_000, 60_001, 119_999, 120_000].map(|now| gate.opens(now));
        assert_eq!(opens, [true, false, false, true, false, false, true]);
        assert!(gate.opens(5), "a clock that was set back does not shut it");
    }

    proptest! {
        #[test]
        fn never_twice_in_a_minute(mut times in prop::collection::vec(0u64..600_000, 0..200)) {
            times.sort_unstable();
            let mut gate = Gate::default();
            let opened: Vec<u64> = times.into_iter().filter(|now| gate.opens(*now)).collect();
            prop_assert!(opened.windows(2).all(|pair| pair[1] - pair[0] >= PAUSE_MS));
        }
    }
}
