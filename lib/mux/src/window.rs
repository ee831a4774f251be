//! Credit that we give: how large a stream's receive window is, and when the peer hears of it.

use crate::budget::Budget;
use crate::{Pressure, WIRE_WINDOW_BYTES, frame::wire_length};

/// On a path under a millisecond no stream needs more (8 Gbit/s), whatever its rate.
const SHORT_PATH_WINDOW_BYTES_MAX: u32 = 1 << 20;
/// A grown window that was not used for so long falls back to the initial size.
const WINDOW_IDLE_MS_MAX: u64 = 10_000;

/// What tuning goes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    pub(crate) initial: u32,
    pub(crate) max: u32,
    pub(crate) rtt_ms: Option<u64>,
}

/// Receive window of one stream.
///
/// Credit is never taken back, only granted late: a window shrinks by not being topped up.
#[derive(Debug)]
pub(crate) struct Window {
    /// Bytes the peer may still send.
    pub(crate) credit: u32,
    /// Bytes that credit and unread data together shall reach.
    target: u32,
    /// Bytes above the initial window that are charged to the budget.
    growth: u32,
    granted_ms: u64,
    /// When the first byte since the last grant came: before it, the sender had nothing to send.
    spending_ms: Option<u64>,
}

impl Window {
    pub(crate) fn new(initial: u32, now_ms: u64) -> Window {
        Window {
            credit: initial,
            target: initial,
            growth: 0,
            granted_ms: now_ms,
            spending_ms: None,
        }
    }

    /// The peer used credit, which leaves `credit`.
    pub(crate) fn spend(&mut self, credit: u32, now_ms: u64) {
        self.credit = credit;
        self.spending_ms.get_or_insert(now_ms);
    }

    pub(crate) fn growth(&self) -> usize {
        self.growth as usize
    }

    /// Whether so much was consumed that a grant is worth a frame.
    pub(crate) fn is_due(&self, unread: usize) -> bool {
        self.held(unread) <= self.target / 2
    }

    fn held(&self, unread: usize) -> u32 {
        self.credit.saturating_add(wire_length(unread))
    }

    /// Retunes the window and grants what is missing; the result goes out as a WindowUpdate.
    /// Growth is charged before it is granted.
    pub(crate) fn grant(
        &mut self,
        unread: usize,
        now_ms: u64,
        tuning: Tuning,
        budget: &Budget,
    ) -> u32 {
        let held = self.held(unread);
        let is_grown = self.target > tuning.initial;
        let is_idle = now_ms.saturating_sub(self.granted_ms) > WINDOW_IDLE_MS_MAX;
        if (is_grown && is_idle) || budget.pressure() >= Pressure::NoGrowth {
            self.target = tuning.initial;
        } else {
            let since_ms = self.spending_ms.unwrap_or(self.granted_ms);
            self.tune(now_ms.saturating_sub(since_ms), tuning, budget);
        }
        self.spending_ms = None;
        let delta = self.target.saturating_sub(held);
        self.credit += delta;
        if delta > 0 {
            self.granted_ms = now_ms;
        }
        self.settle(held + delta, tuning.initial, budget);
        delta
    }

    /// Half a window in less than two round trips: the window is what limits the sender.
    fn tune(&mut self, elapsed_ms: u64, tuning: Tuning, budget: &Budget) {
        let max = match tuning.rtt_ms {
            // Not measured yet: what every foreign stream begins with is no risk.
            None => tuning.initial.max(WIRE_WINDOW_BYTES),
            Some(0) => SHORT_PATH_WINDOW_BYTES_MAX.max(tuning.initial),
            Some(_) => tuning.max,
        };
        let is_hurried = tuning
            .rtt_ms
            .is_none_or(|rtt_ms| elapsed_ms < rtt_ms.max(1) * 2);
        if is_hurried {
            self.grow(max.min(tuning.max), tuning.initial, budget);
        }
    }

    /// Doubles, and leaves a small start behind at once: a reader that keeps up has shown that it
    /// is none of those whom the small start is for.
    fn grow(&mut self, max: u32, initial: u32, budget: &Budget) {
        let target = self
            .target
            .saturating_mul(2)
            .max(WIRE_WINDOW_BYTES)
            .min(max);
        let growth = target.saturating_sub(initial);
        if let Some(more) = growth.checked_sub(self.growth).filter(|more| *more > 0) {
            if !budget.try_charge(u64::from(more)) {
                return;
            }
            self.growth = growth;
        }
        self.target = target.max(self.target);
    }

    /// Gives growth back once the peer can no longer fill it.
    fn settle(&mut self, held: u32, initial: u32, budget: &Budget) {
        let needed = held.max(self.target).saturating_sub(initial);
        if let Some(spare) = self.growth.checked_sub(needed) {
            budget.release(u64::from(spare));
            self.growth = needed;
        }
    }

    /// The stream is over: no growth is owed any more.
    pub(crate) fn close(&mut self, budget: &Budget) {
        budget.release(u64::from(self.growth));
        self.growth = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u32 = 1 << 10;
    const TUNING: Tuning = Tuning {
        initial: 256 * K,
        max: 32 << 20,
        rtt_ms: Some(100),
    };

    /// The peer sends all it may, the reader reads it all, a grant follows every half window.
    fn consume(window: &mut Window, now_ms: &mut u64, step_ms: u64, budget: &Budget) -> u32 {
        while !window.is_due(0) {
            window.spend(window.credit - K, *now_ms);
        }
        *now_ms += step_ms;
        window.grant(0, *now_ms, TUNING, budget)
    }

    #[test]
    fn a_fast_reader_on_a_long_path_reaches_the_maximum() {
        let budget = Budget::new(1 << 30);
        let (mut window, mut now_ms) = (Window::new(256 * K, 0), 0);
        for _ in 0..12 {
            consume(&mut window, &mut now_ms, 100, &budget);
        }
        assert_eq!(window.target, 32 << 20);
        assert_eq!(budget.used(), (32 << 20) - 256 * 1024);
        window.close(&budget);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_slow_reader_keeps_the_initial_window() {
        let budget = Budget::new(1 << 30);
        let (mut window, mut now_ms) = (Window::new(256 * K, 0), 0);
        for _ in 0..12 {
            assert_eq!(consume(&mut window, &mut now_ms, 200, &budget), 128 * K);
        }
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn growth_stops_at_the_budget_and_shrinks_under_pressure() {
        let budget = Budget::new(4 << 20);
        let (mut window, mut now_ms) = (Window::new(256 * K, 0), 0);
        for _ in 0..12 {
            consume(&mut window, &mut now_ms, 10, &budget);
        }
        assert_eq!(window.target, 2 << 20, "4 MiB would be above 70 %");
        budget.charge(3 << 20);
        let mut granted = 0;
        for _ in 0..2_048 {
            window.spend(window.credit - K, now_ms);
            if window.is_due(0) {
                granted += window.grant(0, now_ms, TUNING, &budget);
            }
        }
        assert_eq!(window.target, 256 * K);
        assert!(
            granted <= 512 * K,
            "grown credit is not topped up: {granted}"
        );
        assert_eq!(budget.used(), 3 << 20, "all growth is returned");
    }

    #[test]
    fn an_idle_window_falls_back_but_never_shuts() {
        let budget = Budget::new(1 << 30);
        let (mut window, mut now_ms) = (Window::new(256 * K, 0), 0);
        for _ in 0..4 {
            consume(&mut window, &mut now_ms, 10, &budget);
        }
        assert!(window.target > 256 * K);
        for _ in 0..40 {
            consume(&mut window, &mut now_ms, 11_000, &budget);
            assert!(window.credit >= 128 * K);
        }
        assert_eq!((window.target, budget.used()), (256 * K, 0));
    }

    #[test]
    fn a_short_path_needs_no_giant_window() {
        let budget = Budget::new(1 << 30);
        let tuning = Tuning {
            rtt_ms: Some(0),
            ..TUNING
        };
        let mut window = Window::new(32 * K, 0);
        for _ in 0..20 {
            window.spend(0, 0);
            window.grant(
                0,
                0,
                Tuning {
                    initial: 32 * K,
                    ..tuning
                },
                &budget,
            );
        }
        assert_eq!(window.target, SHORT_PATH_WINDOW_BYTES_MAX);
    }

    #[test]
    fn a_small_start_is_left_at_once_by_a_reader_that_keeps_up() {
        let budget = Budget::new(1 << 30);
        let small = Tuning {
            initial: 32 * K,
            ..TUNING
        };
        let mut window = Window::new(32 * K, 0);
        // The service thinks for 3 s before its first byte: no sign of a slow reader.
        window.spend(16 * K, 3_000);
        assert_eq!(window.grant(0, 3_001, small, &budget), 240 * K);
        assert_eq!(budget.used(), u64::from(224 * K));

        let unmeasured = Tuning {
            rtt_ms: None,
            ..small
        };
        let mut window = Window::new(32 * K, 0);
        for _ in 0..4 {
            window.spend(0, 0);
            window.grant(0, 9_000, unmeasured, &budget);
        }
        assert_eq!(window.target, 256 * K, "no further without a measurement");
    }

    #[test]
    fn a_small_start_stays_with_a_slow_reader() {
        let budget = Budget::new(1 << 30);
        let small = Tuning {
            initial: 32 * K,
            ..TUNING
        };
        let mut window = Window::new(32 * K, 0);
        let mut now_ms = 0;
        for _ in 0..40 {
            window.spend(16 * K, now_ms);
            now_ms += 200;
            assert_eq!(window.grant(0, now_ms, small, &budget), 16 * K);
        }
        assert_eq!(budget.used(), 0);
    }
}
