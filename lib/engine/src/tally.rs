//! What a turn of a pair changed, and who hears of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use culvert_telemetry::metrics::octave::{Row, Spread};

use crate::inbox::Live;
use crate::kernel::Linux;
use crate::pair::{Pair, Side};

/// Directions: towards the service, towards the client.
pub const DIRECTIONS: [&str; 2] = ["to_service", "to_client"];
/// How bytes move: through a buffer, through a pipe.
pub const DATAPATHS: [&str; 2] = ["copy", "splice"];

/// A pair's counters at one moment; `[0]` is towards the service.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    moved: [u64; 2],
    spliced: [u64; 2],
    splicing: [bool; 2],
    full: [bool; 2],
}

/// What a thread tells of its turns.
#[derive(Debug, Default)]
pub struct Turns {
    /// From readiness to the end of the turn that moved the bytes, by direction
    /// and datapath.
    turnaround: [[Row; 2]; 2],
    /// Rounds over all pairs.
    round: Row,
    /// Directions that changed to splice, and back.
    switches: [AtomicU64; 2],
    /// Bytes delivered, by direction and datapath.
    bytes: [[AtomicU64; 2]; 2],
}

/// The same, read.
#[derive(Debug, Clone, Copy, Default)]
pub struct TurnsRead {
    /// By direction and datapath.
    pub turnaround: [[Spread; 2]; 2],
    /// Rounds.
    pub round: Spread,
    /// To splice, and back.
    pub switches: [u64; 2],
    /// Bytes, by direction and datapath.
    pub bytes: [[u64; 2]; 2],
}

/// Since when sinks are full.
#[derive(Debug, Default)]
pub struct Stalls([Option<u64>; 2]);

impl Tally {
    /// Of `pair`, now.
    pub fn of(pair: &Pair<Linux>) -> Self {
        let (to_service, to_client) = (pair.counts(Side::Client), pair.counts(Side::Service));
        Self {
            moved: [to_service.0, to_client.0],
            spliced: [to_service.1, to_client.1],
            splicing: pair.splicing(),
            full: pair.waits_for_room(),
        }
    }

    /// Bytes delivered both ways, and those of them spliced.
    pub fn total(&self) -> (u64, u64) {
        (self.moved.iter().sum(), self.spliced.iter().sum())
    }

    /// Whether it moves bulk.
    pub fn is_splicing(&self) -> bool {
        self.splicing.contains(&true)
    }

    /// Tells `live`.
    pub fn tell(&self, live: &Live) {
        live.to_service.store(self.moved[0], Ordering::Relaxed);
        live.to_client.store(self.moved[1], Ordering::Relaxed);
        live.spliced.store(self.total().1, Ordering::Relaxed);
    }

    /// Whether the first byte reached the client since `before`.
    pub fn answered(&self, before: &Self) -> bool {
        before.moved[1] == 0 && self.moved[1] > 0
    }
}

impl Turns {
    /// A turn took a pair from `before` to `after`, `took_ns` after it was told to.
    pub fn turned(&self, before: &Tally, after: &Tally, took_ns: u64) {
        for direction in 0..2 {
            let moved = after.moved[direction] - before.moved[direction];
            let spliced = after.spliced[direction] - before.spliced[direction];
            if moved > 0 {
                self.turnaround[direction][usize::from(spliced > 0)].record(took_ns);
                let [copied_all, spliced_all] = &self.bytes[direction];
                copied_all.fetch_add(moved - spliced, Ordering::Relaxed);
                spliced_all.fetch_add(spliced, Ordering::Relaxed);
            }
            let (was, is) = (before.splicing[direction], after.splicing[direction]);
            if was != is {
                self.switches[usize::from(was)].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// A round over all pairs that had something to do took so long.
    pub fn round(&self, took_ns: u64) {
        self.round.record(took_ns);
    }

    /// Adds what this thread tells.
    pub fn add_to(&self, read: &mut TurnsRead) {
        for (own, sum) in self.turnaround.iter().zip(&mut read.turnaround) {
            for (own, sum) in own.iter().zip(sum) {
                sum.add(&own.read());
            }
        }
        read.round.add(&self.round.read());
        for (own, sum) in self
            .bytes
            .iter()
            .flatten()
            .zip(read.bytes.as_flattened_mut())
        {
            *sum += own.load(Ordering::Relaxed);
        }
        for (own, sum) in self.switches.iter().zip(&mut read.switches) {
            *sum += own.load(Ordering::Relaxed);
        }
    }
}

impl Stalls {
    /// Bytes of a direction wait for room in its sink, or do not any more.
    pub fn seen(&mut self, now: &Tally, now_ns: u64, live: &Live) {
        for direction in 0..2 {
            let since = &mut self.0[direction];
            if let Some(began) = *since {
                let stalled = &live.stalled_ns[direction];
                stalled.fetch_add(now_ns.saturating_sub(began), Ordering::Relaxed);
            }
            *since = now.full[direction].then_some(now_ns);
        }
    }
}

/// Whole milliseconds.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Nanoseconds.
pub fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Whole microseconds.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_told_by_direction_and_datapath() {
        let turns = Turns::default();
        let before = Tally::default();
        let mut after = Tally {
            moved: [10, 500],
            spliced: [0, 500],
            splicing: [false, true],
            full: [true, false],
        };
        turns.turned(&before, &after, 3_000);
        after.splicing[1] = false;
        turns.turned(
            &Tally {
                splicing: [false, true],
                ..after
            },
            &after,
            9_000,
        );
        let mut read = TurnsRead::default();
        turns.add_to(&mut read);
        let counts = read.turnaround.map(|row| row.map(|spread| spread.count()));
        assert_eq!(counts, [[1, 0], [0, 1]]);
        assert_eq!(read.switches, [1, 1]);
        assert_eq!(read.bytes, [[10, 0], [0, 500]]);
        assert!(after.answered(&before) && !after.answered(&after));
    }

    #[test]
    fn a_full_sink_counts_while_it_is_full() {
        let (live, mut stalls) = (Live::default(), Stalls::default());
        let full = Tally {
            full: [true, false],
            ..Tally::default()
        };
        stalls.seen(&full, 100, &live);
        stalls.seen(&full, 150, &live);
        stalls.seen(&Tally::default(), 175, &live);
        stalls.seen(&Tally::default(), 900, &live);
        let stalled = live
            .stalled_ns
            .each_ref()
            .map(|ns| ns.load(Ordering::Relaxed));
        assert_eq!(stalled, [75, 0]);
    }
}
