//! A family of instruments: one for each set of label values that was asked for.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;

use super::instrument::Instrument;
use super::text::{Labels, Series, cluster_of, head};
use super::{Tell, UNROUTED};

/// A family. Clones are the same one.
pub struct Vector<I: Instrument>(Arc<Inner<I>>);

struct Inner<I: Instrument> {
    name: Box<str>,
    help: Box<str>,
    labels: Labels,
    shape: I::Shape,
    /// By what their lines begin with, sorted: as they are told.
    series: RwLock<BTreeMap<Box<str>, One<I>>>,
}

struct One<I> {
    instrument: I,
    /// Of a cluster, which is not told of as long as nothing happened.
    of_cluster: bool,
}

impl<I: Instrument> Clone for Vector<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

thread_local! {
    /// A series that is looked up; most are there already, and cost no allocation.
    static WORDS: RefCell<String> = const { RefCell::new(String::new()) };
}

impl<I: Instrument> Vector<I> {
    pub(super) fn new(name: &str, help: &str, labels: &[&str], shape: I::Shape) -> Self {
        Self(Arc::new(Inner {
            name: name.into(),
            help: help.into(),
            labels: Labels::new(labels),
            shape,
            series: RwLock::default(),
        }))
    }

    /// The instrument of these values, in the order of the family's labels; it comes to be when
    /// it is asked for.
    ///
    /// # Panics
    /// When there are not as many values as labels: a defect of the program, found by every test.
    #[must_use]
    pub fn with_label_values<V: AsRef<str>>(&self, values: &[V]) -> I {
        WORDS.with_borrow_mut(|words| {
            words.clear();
            Series::write_begin(&self.0.name, &self.0.labels, values, words);
            if let Some(one) = self.0.series.read().get(words.as_str()) {
                return one.instrument.clone();
            }
            let of_cluster = cluster_of(words).is_some_and(|cluster| cluster != UNROUTED);
            let mut series = self.0.series.write();
            let one = series.entry(words.as_str().into()).or_insert_with(|| One {
                instrument: I::new(&self.0.shape),
                of_cluster,
            });
            one.instrument.clone()
        })
    }

    /// Forgets every series.
    pub fn reset(&self) {
        self.0.series.write().clear();
    }
}

impl<I: Instrument> Tell for Vector<I> {
    fn write(&self, text: &mut String) {
        let Inner {
            name, help, shape, ..
        } = &*self.0;
        let series = self.0.series.read();
        let told = series
            .iter()
            .filter(|(_, one)| !(one.of_cluster && one.instrument.is_silent()));
        let mut is_first = true;
        for (begin, one) in told {
            if std::mem::take(&mut is_first) {
                head(name, help, I::KIND, text);
            }
            one.instrument.write(&Series { name, begin }, shape, text);
        }
    }

    fn forget(&self, clusters: &HashSet<String>) {
        let mut series = self.0.series.write();
        series.retain(|begin, _| cluster_of(begin).is_none_or(|it| !clusters.contains(it)));
    }
}
