//! How many data channels of one session should wait for clients.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Fewest that wait once a session has use for them.
pub const CHANNELS_PARKED_MIN: usize = 2;
/// Most that wait.
pub const CHANNELS_PARKED_MAX: usize = 64;
/// Demand is remembered this long, ms.
const WINDOW_MS: u64 = 10_000;
/// Opens this close together are concurrent: no channel of the first one's
/// refill can serve the next, ms.
const REFILL_MS: u64 = 250;
/// Opens remembered.
const OPENS_MAX: usize = 1_024;

/// Opens of the last seconds.
#[derive(Debug, Default)]
pub struct Demand {
    /// When, and how many were concurrent then.
    opens: VecDeque<(u64, u16)>,
}

impl Demand {
    /// A client wants a channel.
    pub fn opened(&mut self, now_ms: u64) {
        self.forget(now_ms);
        let since_ms = now_ms.saturating_sub(REFILL_MS);
        let near = self.opens.iter().rev();
        let concurrent = near.take_while(|(at_ms, _)| *at_ms >= since_ms).count() + 1;
        if self.opens.len() == OPENS_MAX {
            self.opens.pop_front();
        }
        let concurrent = u16::try_from(concurrent).unwrap_or(u16::MAX);
        self.opens.push_back((now_ms, concurrent));
    }

    /// Channels that should wait: the 95th percentile of concurrent opens in
    /// the last 10 s, at least [`CHANNELS_PARKED_MIN`], at most
    /// [`CHANNELS_PARKED_MAX`].
    pub fn target(&mut self, now_ms: u64) -> usize {
        self.forget(now_ms);
        let mut concurrent: Vec<u16> = self.opens.iter().map(|(_, count)| *count).collect();
        concurrent.sort_unstable();
        let rank = (concurrent.len() * 95).div_ceil(100);
        let p95 = rank.checked_sub(1).and_then(|at| concurrent.get(at));
        usize::from(p95.copied().unwrap_or(0)).clamp(CHANNELS_PARKED_MIN, CHANNELS_PARKED_MAX)
    }

    fn forget(&mut self, now_ms: u64) {
        let since_ms = now_ms.saturating_sub(WINDOW_MS);
        while self
            .opens
            .front()
            .is_some_and(|(at_ms, _)| *at_ms < since_ms)
        {
            self.opens.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_remembered_ten_seconds() {
        let mut demand = Demand::default();
        assert_eq!(demand.target(0), CHANNELS_PARKED_MIN);
        for _ in 0..20 {
            demand.opened(1_000);
        }
        assert_eq!(demand.target(1_000), 19);
        assert_eq!(demand.target(11_000), 19);
        assert_eq!(demand.target(11_001), CHANNELS_PARKED_MIN);
    }

    #[test]
    fn one_after_the_other_is_no_burst() {
        let mut demand = Demand::default();
        for second in 0..100 {
            demand.opened(second * 1_000);
        }
        assert_eq!(demand.target(99_000), CHANNELS_PARKED_MIN);
    }

    #[test]
    fn neither_memory_nor_target_grows_without_bound() {
        let mut demand = Demand::default();
        for _ in 0..100_000 {
            demand.opened(5);
        }
        assert_eq!(demand.target(5), CHANNELS_PARKED_MAX);
        assert_eq!(demand.opens.len(), OPENS_MAX);
    }
}
