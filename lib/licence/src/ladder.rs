//! How long the licence server has not been reached, and what that means (L-25 to L-28).

/// A day in milliseconds.
pub const DAY_MS: u64 = 86_400_000;

/// The time without a successful heartbeat. It counts on a high-water mark of the
/// clock: setting the clock back neither shortens nor lengthens it. While the
/// heartbeat is disabled it stands still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ladder {
    /// Milliseconds since 1970: the latest time that was seen; 0 = never looked at.
    pub seen_unix_ms: u64,
    /// Milliseconds without success up to then.
    pub without_ms: u64,
}

/// What the time without success means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// Under 7 days: nothing is shown.
    Silent,
    /// From 7 days: a yellow banner.
    Yellow,
    /// From 14 days: a red banner, and a warning at each login of an administrator.
    Red,
    /// From 30 days: the same red banner. Nothing is blocked.
    LongRed,
}

impl Ladder {
    /// As it is at `now_unix_ms`. The first look starts the count.
    #[must_use]
    pub fn at(self, now_unix_ms: u64, is_enabled: bool) -> Self {
        let passed = match self.seen_unix_ms {
            0 => 0,
            seen => now_unix_ms.saturating_sub(seen),
        };
        Self {
            seen_unix_ms: self.seen_unix_ms.max(now_unix_ms),
            without_ms: if is_enabled {
                self.without_ms.saturating_add(passed)
            } else {
                self.without_ms
            },
        }
    }

    /// The server answered at `now_unix_ms`.
    #[must_use]
    pub fn succeeded(self, now_unix_ms: u64) -> Self {
        Self {
            without_ms: 0,
            ..self.at(now_unix_ms, true)
        }
    }

    /// Whole days without success.
    #[must_use]
    pub fn days(self) -> u64 {
        self.without_ms / DAY_MS
    }

    /// What they mean.
    #[must_use]
    pub fn rung(self) -> Rung {
        match self.days() {
            0..7 => Rung::Silent,
            7..14 => Rung::Yellow,
            14..30 => Rung::Red,
            _ => Rung::LongRed,
        }
    }
}

impl Rung {
    /// The word in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Yellow => "yellow",
            Self::Red => "red",
            Self::LongRed => "long_red",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: u64 = 1_763_683_200_000;

    #[test]
    fn the_ladder_changes_on_days_7_14_and_30() {
        let first = Ladder::default().at(START, true);
        assert_eq!(first.without_ms, 0, "the count starts at the first boot");
        for (day, rung) in [
            (0, Rung::Silent),
            (7, Rung::Yellow),
            (14, Rung::Red),
            (30, Rung::LongRed),
        ] {
            let exact = START + day * DAY_MS;
            assert_eq!(first.at(exact, true).rung(), rung, "day {day}");
            if day > 0 {
                assert!(first.at(exact - 1, true).rung() < rung, "before day {day}");
            }
        }
        assert_eq!(first.at(START + 4_000 * DAY_MS, true).rung(), Rung::LongRed);
    }

    #[test]
    fn success_ends_it_and_disabling_holds_it() {
        let ladder = Ladder::default().at(START, true);
        let held = ladder.at(START + 10 * DAY_MS, true);
        assert_eq!(held.days(), 10);
        let disabled = held.at(START + 40 * DAY_MS, false);
        assert_eq!(disabled.days(), 10, "it stands still while disabled");
        assert_eq!(disabled.at(START + 45 * DAY_MS, true).days(), 15);
        assert_eq!(held.succeeded(START + 11 * DAY_MS).days(), 0);
    }

    proptest! {
        /// A clock that is set back or jumps about never counts a moment twice, and
        /// never more than the latest time that was seen.
        #[test]
        fn setting_the_clock_back_gains_nothing(moves in prop::collection::vec(0_u64..100 * DAY_MS, 1..50)) {
            let mut ladder = Ladder::default().at(START, true);
            let mut highest = START;
            for moved in moves {
                let before = ladder;
                ladder = ladder.at(START + moved, true);
                highest = highest.max(START + moved);
                prop_assert!(ladder.without_ms >= before.without_ms);
                prop_assert_eq!(ladder.seen_unix_ms, highest);
                prop_assert_eq!(ladder.without_ms, highest - START);
            }
        }
    }
}
