//! When requests are due, whatever the answers do: the open loop.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;

use super::{Arrivals, histogram, microseconds};
use crate::statistics::Random;

/// Requests that are due and wait for a free connection.
const DUE_MAX: usize = 1_000_000;

/// A schedule over a window, seeded.
pub(crate) struct Schedule {
    arrivals: Arrivals,
    end: Instant,
    next: Instant,
    random: Random,
    due: VecDeque<Instant>,
    lateness: Histogram<u64>,
}

impl Schedule {
    /// The first request is due at `start`.
    pub fn new(arrivals: Arrivals, start: Instant, window: Duration) -> Schedule {
        Schedule {
            arrivals,
            end: start + window,
            next: start,
            random: Random::new(42),
            due: VecDeque::new(),
            lateness: histogram(),
        }
    }

    /// Not by the clock: a loop that was late still owes what was due before the end.
    pub fn lasts(&self) -> bool {
        self.next < self.end
    }

    /// Requests whose time has come and that no connection has taken.
    pub fn waiting(&self) -> u64 {
        self.due.len() as u64
    }

    /// Moves arrivals whose time has come to the queue.
    ///
    /// # Errors
    /// When more than [`DUE_MAX`] wait.
    pub fn note(&mut self) -> Result<()> {
        let (Arrivals::Constant(rate) | Arrivals::Poisson(rate)) = self.arrivals else {
            return Ok(());
        };
        let now = Instant::now();
        while self.next <= now && self.lasts() {
            if self.due.len() == DUE_MAX {
                bail!("{DUE_MAX} requests wait for a connection: the rate is out of reach");
            }
            self.due.push_back(self.next);
            let late = microseconds(now.duration_since(self.next));
            self.lateness.saturating_record(late);
            let mean = 1.0 / rate;
            let gap = match self.arrivals {
                Arrivals::Poisson(_) => -mean * (1.0 - self.random.unit()).ln(),
                _ => mean,
            };
            self.next += Duration::from_secs_f64(gap);
        }
        Ok(())
    }

    /// The oldest request that waits.
    pub fn front(&self) -> Option<Instant> {
        self.due.front().copied()
    }

    /// Takes it off.
    pub fn pop(&mut self) {
        self.due.pop_front();
    }

    /// How late the loop itself was, microseconds.
    pub fn lateness(self) -> Histogram<u64> {
        self.lateness
    }
}
