//! What the kernel counted, read from its memory: O(clusters), no syscall.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use culvert_abi::{Cnt, Kind, Leg, Own, bucket, keys};

use crate::clusters::{ClusterIndex, LiveRow};
use crate::kernel::Kernel;
use crate::observer::{Shared, monotonic_ns};
use crate::slots::SlotCounts;

const KINDS: [Kind; keys::KINDS as usize] = [
    Kind::ToServiceEmpty,
    Kind::ToClientEmpty,
    Kind::ToServiceBehind,
    Kind::ToClientBehind,
    Kind::RttClient,
    Kind::RttCarrier,
    Kind::RttData,
    Kind::RxWait,
];

/// What stood in the rows of an index when it changed its owner.
#[derive(Debug, Clone)]
pub(crate) struct Baseline {
    histograms: [Histogram; keys::KINDS as usize],
    counts: [Cnt; keys::LEGS as usize],
}

impl Default for Baseline {
    fn default() -> Self {
        Self {
            histograms: [const { Histogram::EMPTY }; keys::KINDS as usize],
            counts: [Cnt::default(); keys::LEGS as usize],
        }
    }
}

impl Baseline {
    pub fn of(kernel: &Kernel, index: u16) -> Self {
        Self {
            histograms: std::array::from_fn(|kind| histogram(kernel, index, KINDS[kind])),
            counts: std::array::from_fn(|leg| {
                counts(kernel, index, u8::try_from(leg).unwrap_or(0))
            }),
        }
    }
}

/// Samples of a duration, in quarter octaves from 0.95 us to 64 s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    /// Samples of each bucket, not added up; upper bounds are [`bucket::upper_s`].
    pub buckets: [u64; bucket::BUCKETS],
    /// Sum of the samples, in nanoseconds. May trail the buckets by a sample.
    pub sum_ns: u64,
}

impl Histogram {
    /// Without samples.
    pub const EMPTY: Self = Self {
        buckets: [0; bucket::BUCKETS],
        sum_ns: 0,
    };

    /// How many samples.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Sum of the samples, in seconds.
    pub fn sum_s(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a metric has 53 bits")]
        let sum_ns = self.sum_ns as f64;
        sum_ns / 1e9
    }

    /// The 27 finite upper bounds in seconds and infinity, each with the samples up to it.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let octaves = bucket::fold_octaves(&self.buckets).into_iter().enumerate();
        octaves.scan(0, |sum, (octave, count)| {
            *sum += count;
            Some((bucket::octave_upper_s(octave), *sum))
        })
    }

    /// Upper bound, in seconds, of the bucket in which the quantile `per_mille` / 1000 lies; infinite
    /// above 64 s, nothing without samples.
    pub fn quantile_s(&self, per_mille: u64) -> Option<f64> {
        let count = self.count();
        let rank = (count * per_mille.min(1_000)).div_ceil(1_000).max(1);
        let mut seen = 0;
        let at = self.buckets.iter().position(|samples| {
            seen += samples;
            seen >= rank
        })?;
        Some(bucket::upper_s(at))
    }

    /// Adds another one's samples.
    pub fn add(&mut self, other: &Self) {
        for (own, other) in self.buckets.iter_mut().zip(other.buckets) {
            *own += other;
        }
        self.sum_ns += other.sum_ns;
    }

    /// Takes an earlier state of the same row away.
    pub fn since(&mut self, earlier: &Self) {
        for (own, earlier) in self.buckets.iter_mut().zip(earlier.buckets) {
            *own = own.saturating_sub(earlier);
        }
        self.sum_ns = self.sum_ns.saturating_sub(earlier.sum_ns);
    }
}

/// Why bytes have no residence sample although they were relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unsampled {
    /// All slots were taken.
    NoSlot,
    /// The byte never left.
    Stale,
    /// A segment before it was lost on the way here.
    Hole,
    /// Offsets disagreed: a fault of the bookkeeping.
    Offset,
    /// The socket is one of an earlier pair.
    Generation,
    /// The beginning of the stream was not seen.
    NoBase,
}

impl Unsampled {
    /// Value of label `reason`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoSlot => "no_slot",
            Self::Stale => "stale",
            Self::Hole => "hole",
            Self::Offset => "offset",
            Self::Generation => "generation",
            Self::NoBase => "no_base",
        }
    }
}

/// A view of all counters.
pub struct Reading<'a> {
    kernel: Option<&'a Kernel>,
    rows: Vec<LiveRow<Baseline>>,
    refused: u64,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        let clusters = shared.clusters.read();
        Self {
            kernel: shared.kernel.as_ref(),
            rows: clusters.live().collect(),
            refused: clusters.refused(),
        }
    }

    /// Every cluster with a row, the fixed ones first.
    pub fn clusters(&self) -> impl Iterator<Item = ClusterReading<'_>> {
        self.rows.iter().map(|row| ClusterReading {
            name: &row.name,
            index: row.index,
            kernel: self.kernel,
            baseline: row.baseline.as_deref(),
        })
    }

    /// How often a cluster found no row left.
    pub fn clusters_refused(&self) -> u64 {
        self.refused
    }

    /// A cell that the programs keep about themselves; 0 without them.
    pub fn own(&self, cell: Own) -> u64 {
        self.kernel.map_or(0, |it| it.own(cell))
    }

    /// Why bytes went without a sample, and how often.
    pub fn unsampled(&self) -> [(Unsampled, u64); 6] {
        let counted = |cell: fn(&Kernel) -> &AtomicU64| {
            self.kernel.map_or(0, |it| cell(it).load(Ordering::Relaxed))
        };
        [
            (Unsampled::NoSlot, counted(|it| &it.no_slot)),
            (Unsampled::Stale, counted(|it| &it.stale)),
            (Unsampled::Hole, self.own(Own::Hole)),
            (Unsampled::Offset, self.own(Own::OffsetSkipped)),
            (Unsampled::Generation, self.own(Own::Generation)),
            (Unsampled::NoBase, self.own(Own::NoBase)),
        ]
    }

    /// Resets that were sent while somebody traced: on which leg, for which reason as the running
    /// kernel names it, how many.
    pub fn resets(&self) -> impl Iterator<Item = (Leg, Cow<'_, str>, u64)> {
        let kernel = self.kernel.into_iter();
        kernel.flat_map(|kernel| {
            let numbers = Leg::ALL.into_iter().flat_map(|leg| {
                let reasons = 0..keys::RESET_REASONS;
                reasons.map(move |reason| (leg, reason))
            });
            numbers.filter_map(|(leg, reason)| {
                let count = kernel.resets(leg, reason);
                (count > 0).then(|| (leg, reset_name(kernel, reason), count))
            })
        })
    }

    /// States of the slots.
    pub fn slots(&self) -> SlotCounts {
        let counts = |it: &Kernel| it.slots.lock().counts(monotonic_ns());
        self.kernel.map_or_else(SlotCounts::default, counts)
    }
}

fn reset_name(kernel: &Kernel, reason: u32) -> Cow<'_, str> {
    let known = kernel
        .reset_names
        .iter()
        .find(|(number, _)| *number == reason);
    match known {
        _ if reason == keys::RESET_UNKNOWN => "unknown".into(),
        Some((_, name)) => name.as_str().into(),
        None => format!("reason_{reason}").into(),
    }
}

/// A view of one cluster's counters.
pub struct ClusterReading<'a> {
    /// Its name, as whoever claimed the row gave it.
    pub name: &'a str,
    /// Its row.
    pub index: ClusterIndex,
    kernel: Option<&'a Kernel>,
    baseline: Option<&'a Baseline>,
}

impl ClusterReading<'_> {
    /// A distribution; nothing when it has no sample.
    pub fn histogram(&self, kind: Kind) -> Option<Histogram> {
        let kernel = self.kernel?;
        let mut read = non_zero(kernel, self.index.0, kind)?;
        if let Some(baseline) = self.baseline {
            read.since(&baseline.histograms[kind as usize]);
        }
        (read.count() > 0).then_some(read)
    }

    /// The counters of each leg that ever moved.
    pub fn legs(&self) -> impl Iterator<Item = (Leg, Cnt)> {
        Leg::ALL.into_iter().filter_map(|leg| {
            let mut read = counts(self.kernel?, self.index.0, leg as u8);
            if let Some(baseline) = self.baseline {
                read = minus(&read, &baseline.counts[usize::from(leg as u8)]);
            }
            (read != Cnt::default()).then_some((leg, read))
        })
    }
}

/// A row whose sum moved: most rows never do, and then one cell tells.
fn non_zero(kernel: &Kernel, index: u16, kind: Kind) -> Option<Histogram> {
    let sum = keys::hist_row(index, kind as u32) + bucket::SUM;
    let moved = kernel.histograms.cells()[sum as usize].load(Ordering::Relaxed) != 0;
    moved.then(|| histogram(kernel, index, kind))
}

fn histogram(kernel: &Kernel, index: u16, kind: Kind) -> Histogram {
    let first = keys::hist_row(index, kind as u32) as usize;
    let row = &kernel.histograms.cells()[first..first + bucket::ROW as usize];
    let load = |at: usize| row[at].load(Ordering::Relaxed);
    Histogram {
        buckets: std::array::from_fn(load),
        sum_ns: load(bucket::SUM as usize),
    }
}

/// All shards of a leg, added up.
fn counts(kernel: &Kernel, index: u16, leg: u8) -> Cnt {
    let first = keys::cnt_cell(index, leg, 0) as usize;
    let shards = &kernel.counters.cells()[first..first + keys::SHARDS as usize];
    let sum = |at: usize| -> u64 {
        let cells = shards
            .iter()
            .map(|shard| shard.0[at].load(Ordering::Relaxed));
        cells.fold(0, u64::wrapping_add)
    };
    of_words(std::array::from_fn(sum))
}

fn of_words(words: [u64; Cnt::BYTES / 8]) -> Cnt {
    let [
        rx_bytes,
        tx_bytes,
        rx_skbs,
        tx_skbs,
        retrans,
        retrans_rto,
        rto_events,
        closes,
    ] = words;
    Cnt {
        rx_bytes,
        tx_bytes,
        rx_skbs,
        tx_skbs,
        retrans,
        retrans_rto,
        rto_events,
        closes,
    }
}

fn minus(read: &Cnt, earlier: &Cnt) -> Cnt {
    Cnt {
        rx_bytes: read.rx_bytes.saturating_sub(earlier.rx_bytes),
        tx_bytes: read.tx_bytes.saturating_sub(earlier.tx_bytes),
        rx_skbs: read.rx_skbs.saturating_sub(earlier.rx_skbs),
        tx_skbs: read.tx_skbs.saturating_sub(earlier.tx_skbs),
        retrans: read.retrans.saturating_sub(earlier.retrans),
        retrans_rto: read.retrans_rto.saturating_sub(earlier.retrans_rto),
        rto_events: read.rto_events.saturating_sub(earlier.rto_events),
        closes: read.closes.saturating_sub(earlier.closes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One sample in each of these buckets.
    fn of(buckets: &[usize]) -> Histogram {
        let mut histogram = Histogram::EMPTY;
        for at in buckets {
            histogram.buckets[*at] += 1;
            histogram.sum_ns += 1_000_000_000;
        }
        histogram
    }

    #[test]
    fn octaves_add_up_to_27_bounds_and_infinity() {
        let bounds: Vec<_> = of(&[0, 1, 4, 5, 104, 105]).cumulative().collect();
        assert_eq!(bounds.len(), 28);
        assert_eq!(bounds[0], (1.0 / f64::from(1 << 20), 1));
        assert_eq!(bounds[1].1, 3, "buckets 1 to 4");
        assert_eq!(bounds[2].1, 4);
        assert_eq!(bounds[26], (64.0, 5));
        assert_eq!(bounds[27], (f64::INFINITY, 6));
    }

    #[test]
    fn quantiles_are_upper_bounds_of_buckets() {
        let histogram = of(&[80, 80, 80, 84]);
        assert_eq!(histogram.quantile_s(500), Some(1.0));
        assert_eq!(histogram.quantile_s(750), Some(1.0));
        assert_eq!(histogram.quantile_s(990), Some(2.0));
        assert_eq!(of(&[105]).quantile_s(1), Some(f64::INFINITY));
        assert_eq!(Histogram::EMPTY.quantile_s(500), None);
    }

    #[test]
    fn a_baseline_is_taken_away_and_never_below_zero() {
        let mut histogram = of(&[3, 3, 7]);
        histogram.since(&of(&[3, 9]));
        assert_eq!((histogram.buckets[3], histogram.buckets[7]), (1, 1));
        assert_eq!((histogram.buckets[9], histogram.count()), (0, 2));
        assert!((histogram.sum_s() - 1.0).abs() < 1e-9);
        histogram.add(&of(&[7]));
        assert_eq!(histogram.buckets[7], 2);
    }
}
