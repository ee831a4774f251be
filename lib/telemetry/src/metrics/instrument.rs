//! Counters, gauges and histograms: cells that any thread moves and a scrape reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::text::{Bounds, Series};

/// What a family is made of.
pub trait Instrument: Clone + Send + Sync + 'static {
    /// The word of its type in the text.
    const KIND: &'static str;
    /// What all instruments of a family share.
    type Shape: Send + Sync + 'static;

    /// A new one, at nothing.
    fn new(shape: &Self::Shape) -> Self;

    /// Whether nothing ever went into it. A gauge at zero tells something.
    fn is_silent(&self) -> bool;

    /// Its lines.
    fn write(&self, series: &Series<'_>, shape: &Self::Shape, text: &mut String);
}

/// Counts whole things.
#[derive(Clone, Debug, Default)]
pub struct IntCounter(Arc<AtomicU64>);

impl IntCounter {
    /// One more.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// So many more.
    pub fn inc_by(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Instrument for IntCounter {
    const KIND: &'static str = "counter";
    type Shape = ();

    fn new((): &()) -> Self {
        Self::default()
    }

    fn is_silent(&self) -> bool {
        self.get() == 0
    }

    fn write(&self, series: &Series<'_>, (): &(), text: &mut String) {
        series.integer(self.get(), text);
    }
}

/// Counts parts, such as seconds.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// So much more; a negative amount is none.
    pub fn inc_by(&self, more: f64) {
        if more > 0.0 {
            add(&self.0, more);
        }
    }

    /// How much so far.
    #[must_use]
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl Instrument for Counter {
    const KIND: &'static str = "counter";
    type Shape = ();

    fn new((): &()) -> Self {
        Self::default()
    }

    fn is_silent(&self) -> bool {
        self.get() == 0.0
    }

    fn write(&self, series: &Series<'_>, (): &(), text: &mut String) {
        series.number(self.get(), text);
    }
}

/// Rises and falls.
#[derive(Clone, Debug, Default)]
pub struct IntGauge(Arc<AtomicI64>);

impl IntGauge {
    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// So many less.
    pub fn sub(&self, less: i64) {
        self.0.fetch_sub(less, Ordering::Relaxed);
    }

    /// It is now this.
    pub fn set(&self, now: i64) {
        self.0.store(now, Ordering::Relaxed);
    }

    /// What it is.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Instrument for IntGauge {
    const KIND: &'static str = "gauge";
    type Shape = ();

    fn new((): &()) -> Self {
        Self::default()
    }

    fn is_silent(&self) -> bool {
        false
    }

    fn write(&self, series: &Series<'_>, (): &(), text: &mut String) {
        series.integer(self.get(), text);
    }
}

/// A distribution. Its buckets are read one by one: the sum may trail them by what is being
/// observed at that moment.
#[derive(Clone, Debug)]
pub struct Histogram(Arc<Cells>);

#[derive(Debug)]
struct Cells {
    bounds: Arc<[f64]>,
    /// One for each bound, and what lies above the last.
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    /// Takes a value in.
    pub fn observe(&self, value: f64) {
        let at = self.0.bounds.partition_point(|bound| *bound < value);
        self.0.buckets[at].fetch_add(1, Ordering::Relaxed);
        add(&self.0.sum, value);
    }

    /// Values so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        let buckets = self.0.buckets.iter();
        buckets.map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

impl Instrument for Histogram {
    const KIND: &'static str = "histogram";
    type Shape = Bounds;

    fn new(bounds: &Bounds) -> Self {
        let buckets = (0..=bounds.values.len()).map(|_| AtomicU64::new(0));
        Self(Arc::new(Cells {
            bounds: bounds.values.clone(),
            buckets: buckets.collect(),
            sum: AtomicU64::new(0),
        }))
    }

    fn is_silent(&self) -> bool {
        self.count() == 0
    }

    fn write(&self, series: &Series<'_>, bounds: &Bounds, text: &mut String) {
        let buckets = self.0.buckets.iter();
        let buckets = buckets.map(|bucket| bucket.load(Ordering::Relaxed));
        let sum = f64::from_bits(self.0.sum.load(Ordering::Relaxed));
        series.histogram(bounds, buckets, sum, text);
    }
}

fn add(cell: &AtomicU64, more: f64) {
    let added = |bits| Some((f64::from_bits(bits) + more).to_bits());
    // Never refused: `added` always gives a value.
    let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bucket_whose_bound_is_not_below_it() {
        let bounds = Bounds::new(&[0.5, 1.0, 2.0]);
        let histogram = Histogram::new(&bounds);
        assert!(histogram.is_silent());
        for value in [0.1, 0.5, 0.500_1, 2.0, 2.1, 1e9] {
            histogram.observe(value);
        }
        let read = |at: usize| histogram.0.buckets[at].load(Ordering::Relaxed);
        assert_eq!([read(0), read(1), read(2), read(3)], [2, 1, 1, 2]);
    }

    #[test]
    fn parts_add_up_over_threads_and_never_fall() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| counter.inc_by(0.25)));
            }
        });
        counter.inc_by(-3.0);
        counter.inc_by(f64::NAN);
        assert!((counter.get() - 10_000.0).abs() < 1e-9, "{}", counter.get());
    }
}
