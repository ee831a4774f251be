//! Distributions of times over 27 octaves, 2^-20 s to 2^6 s: the bounds of every
//! latency histogram, whoever measures.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds in seconds: 0.95 us, doubled up to 64 s.
pub const OCTAVES: &[f64] = &{
    let mut bounds = [0.0; 27];
    let mut bound = 1.0 / 1_048_576.0;
    let mut at = 0;
    while at < 27 {
        bounds[at] = bound;
        bound *= 2.0;
        at += 1;
    }
    bounds
};

/// The buckets of a distribution: one for each bound, and what lies above the last.
pub const BUCKETS: usize = OCTAVES.len() + 1;

/// The bucket of a time: the first whose bound is not below it.
#[must_use]
pub fn bucket_of(ns: u64) -> usize {
    // Ticks of 2^-30 s; 2^43 ns is far above the last bound.
    let ticks = (ns.min(1 << 43) * 1_125_900) >> 20;
    let octave = match ticks {
        0..=1024 => 0,
        ticks => (64 - (ticks - 1).leading_zeros()) as usize - 10,
    };
    octave.min(BUCKETS - 1)
}

/// A distribution as it is told.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spread {
    /// How many fell into each bucket.
    pub buckets: [u64; BUCKETS],
    /// Their sum in seconds.
    pub sum_s: f64,
}

impl Spread {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Takes another one in.
    pub fn add(&mut self, other: &Self) {
        for (own, more) in self.buckets.iter_mut().zip(other.buckets) {
            *own += more;
        }
        self.sum_s += other.sum_s;
    }

    /// The bound below which this part of all lies; `None` of nothing.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let all = self.count();
        let mut seen = 0;
        for (count, bound) in self
            .buckets
            .iter()
            .zip(OCTAVES.iter().chain([&f64::INFINITY]))
        {
            seen += count;
            if *count > 0 && seen as f64 >= part * all as f64 {
                return Some(*bound);
            }
        }
        None
    }
}

/// A distribution that one thread fills and others read.
#[derive(Debug, Default)]
pub struct Row {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Row {
    /// Takes a time in. Only the thread that owns the row may.
    pub fn record(&self, ns: u64) {
        let more = |cell: &AtomicU64, by: u64| {
            let before = cell.load(Ordering::Relaxed);
            cell.store(before.wrapping_add(by), Ordering::Relaxed);
        };
        more(&self.buckets[bucket_of(ns)], 1);
        more(&self.sum_ns, ns);
    }

    /// What it holds.
    #[must_use]
    pub fn read(&self) -> Spread {
        let mut spread = Spread::default();
        for (count, cell) in spread.buckets.iter_mut().zip(&self.buckets) {
            *count = cell.load(Ordering::Relaxed);
        }
        spread.sum_s = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_below_the_bound_of_its_bucket_and_above_the_one_before() {
        let mut ns = 1_u64;
        while ns < 1 << 45 {
            let at = bucket_of(ns);
            let seconds = ns as f64 / 1e9;
            // Ticks are 0.93 ns: exact but for what lies that near to a bound.
            let slack = 1.0 + 2e-3;
            if let Some(bound) = OCTAVES.get(at) {
                assert!(seconds <= bound * slack, "{ns} in {at}");
            }
            if at > 0 {
                assert!(seconds * slack > OCTAVES[at - 1], "{ns} in {at}");
            }
            ns += ns / 7 + 1;
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn a_row_tells_what_it_took_in() {
        let row = Row::default();
        for _ in 0..99 {
            row.record(3_000);
        }
        row.record(2_000_000_000);
        let spread = row.read();
        assert_eq!(spread.count(), 100);
        assert!((spread.sum_s - 2.000_297).abs() < 1e-9, "{}", spread.sum_s);
        let [half, all] = [0.5, 1.0].map(|part| spread.quantile(part).unwrap());
        assert!((half - 3.81e-6).abs() < 1e-7 && all >= 2.0, "{half} {all}");
        assert_eq!(Spread::default().quantile(0.5), None);
    }
}
