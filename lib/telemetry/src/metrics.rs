//! The metrics of one process.
//!
//! Labels are bounded: small enumerations, or a cluster through
//! [`ClusterLabels`]. Nothing per user, path or connection.
//!
//! Instruments and text are our own: a scrape of a thousand clusters has tens of
//! thousands of lines, for each of which the `prometheus` crate allocates a dozen
//! times; and a cluster that is gone takes its series along. That crate still
//! tells of the process (`process_*`), and this is its only room.

pub mod family;
mod instrument;
mod labels;
pub mod octave;
mod text;
mod vector;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};

use family::Source;
use instrument::Instrument;
pub use instrument::{Counter, Histogram, IntCounter, IntGauge};
pub use labels::{ClusterHistograms, ClusterLabels};
use octave::OCTAVES;
use text::Bounds;

/// Clusters that get a label of their own; the rest share [`OVERFLOW`].
pub const CLUSTER_LABELS_MAX: usize = 1024;
/// The label of every cluster beyond [`CLUSTER_LABELS_MAX`].
pub const OVERFLOW: &str = "_overflow";
/// Clusters that get histograms of their own; the rest share [`OTHER`].
pub const CLUSTER_HISTOGRAMS_MAX: usize = 32;
/// The label of clusters without histograms of their own.
pub const OTHER: &str = "_other";
/// The label of what names no known cluster.
pub const UNROUTED: &str = "_unrouted";
/// Content type of the exposition text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds in seconds that fit both a local hit and a slow watch.
pub const SECONDS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 300.0,
];

/// Registers instruments and renders them.
///
/// ```
/// use culvert_telemetry::metrics::Metrics;
///
/// let metrics = Metrics::new();
/// let opened = metrics.counter_vec("demo_opened_total", "Doors opened.", &["door"]);
/// opened.with_label_values(&["front"]).inc();
/// assert!(metrics.render().contains("demo_opened_total{door=\"front\"} 1"));
/// assert!(metrics.describe().contains("| `demo_opened_total` | counter | door | Doors opened. |"));
/// ```
///
/// A name that does not parse or stands twice is a defect of the program, not
/// of its input: registration then panics, at start, in every test.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    process: Registry,
    families: RwLock<BTreeMap<String, Arc<dyn Tell>>>,
    sources: RwLock<Vec<Source>>,
    described: Mutex<BTreeMap<String, Described>>,
    /// Bytes of the last text: the next one is about as long.
    text_bytes: AtomicUsize,
}

/// A family that is told of at a scrape.
trait Tell: Send + Sync {
    /// Appends its text: nothing as long as it has no series.
    fn write(&self, text: &mut String);

    /// Forgets the series of these clusters, named as they stand in the text.
    fn forget(&self, clusters: &HashSet<String>);
}

struct Described {
    name: String,
    kind: &'static str,
    labels: String,
    help: String,
}

/// Counters by label.
pub type IntCounterVec = vector::Vector<IntCounter>;
/// Counters of parts, by label.
pub type CounterVec = vector::Vector<Counter>;
/// Gauges by label.
pub type IntGaugeVec = vector::Vector<IntGauge>;
/// Distributions by label.
pub type HistogramVec = vector::Vector<Histogram>;

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// An empty registry that also carries `process_*`.
    #[must_use]
    pub fn new() -> Self {
        let process = Registry::new();
        process
            .register(Box::new(ProcessCollector::for_self()))
            .expect("nothing else is in this registry");
        Self(Arc::new(Inner {
            process,
            families: RwLock::default(),
            sources: RwLock::default(),
            described: Mutex::default(),
            text_bytes: AtomicUsize::new(0),
        }))
    }

    /// A counter without labels.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.counter_vec(name, help, &[])
            .with_label_values::<&str>(&[])
    }

    /// A counter with labels.
    #[must_use]
    pub fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(name, help, labels, ())
    }

    /// A gauge without labels.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.gauge_vec(name, help, &[])
            .with_label_values::<&str>(&[])
    }

    /// A gauge with labels.
    #[must_use]
    pub fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(name, help, labels, ())
    }

    /// A histogram with labels; `bounds` are upper bucket bounds, rising.
    #[must_use]
    pub fn histogram_vec(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        bounds: &[f64],
    ) -> HistogramVec {
        self.add(name, help, labels, Bounds::new(bounds))
    }

    /// A counter of seconds, with labels.
    #[must_use]
    pub fn seconds_vec(&self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        self.add(name, help, labels, ())
    }

    /// A histogram of times with labels, over octaves from 0.95 us to 64 s.
    #[must_use]
    pub fn times_vec(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        self.histogram_vec(name, help, labels, OCTAVES)
    }

    /// The exposition text of all instruments. Of clusters it leaves out what
    /// never moved: a thousand of them would say nothing a hundred times each.
    #[must_use]
    pub fn render(&self) -> String {
        let inner = &*self.0;
        let last = inner.text_bytes.load(Ordering::Relaxed);
        let mut text = String::with_capacity(last + last / 8 + 16 * 1024);
        let sources = inner.sources.read();
        let mut read: BTreeMap<&str, String> = sources.iter().flat_map(Source::read).collect();
        for (name, family) in inner.families.read().iter() {
            // What is read comes between, in the order of all names.
            while let Some(entry) = read.first_entry().filter(|it| *it.key() < name.as_str()) {
                text.push_str(&entry.remove());
            }
            family.write(&mut text);
        }
        for rest in read.values() {
            text.push_str(rest);
        }
        TextEncoder::new()
            .encode_utf8(&inner.process.gather(), &mut text)
            .expect("what the crate collects it also encodes");
        inner.text_bytes.store(text.len(), Ordering::Relaxed);
        text
    }

    /// Forgets every series of these clusters: whoever still holds an instrument of theirs moves
    /// it unseen.
    pub fn forget_clusters<'a>(&self, clusters: impl Iterator<Item = &'a str>) {
        let clusters: HashSet<String> = clusters.map(text::escaped).collect();
        if clusters.is_empty() {
            return;
        }
        for family in self.0.families.read().values() {
            family.forget(&clusters);
        }
    }

    /// All instruments as a Markdown table, in the order of their names.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = "| name | type | labels | what |\n|---|---|---|---|\n".to_owned();
        for Described {
            name,
            kind,
            labels,
            help,
        } in self.0.described.lock().values()
        {
            let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {help} |");
        }
        text
    }

    fn add<I: Instrument>(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        shape: I::Shape,
    ) -> vector::Vector<I> {
        self.describe_one(Described {
            name: name.to_owned(),
            kind: I::KIND,
            labels: labels.join(", "),
            help: help.to_owned(),
        });
        let vector = vector::Vector::new(name, help, labels, shape);
        let family = Arc::new(vector.clone());
        self.0.families.write().insert(name.to_owned(), family);
        vector
    }

    fn add_source(&self, source: Source) {
        self.0.sources.write().push(source);
    }

    fn describe_one(&self, one: Described) {
        let is_name = |char: char| char.is_ascii_lowercase() || matches!(char, '0'..='9' | '_');
        assert!(
            one.name.chars().all(is_name),
            "{}: no name of a metric",
            one.name
        );
        let name = one.name.clone();
        let twice = self.0.described.lock().insert(name.clone(), one);
        assert!(twice.is_none(), "{name} is registered twice");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_names_help_and_types() {
        let metrics = Metrics::new();
        let requests = metrics.counter_vec("proxy_requests_total", "Requests.", &["cluster"]);
        requests.with_label_values(&["a"]).inc_by(3);
        let text = metrics.render();
        assert!(
            text.contains("# TYPE proxy_requests_total counter"),
            "{text}"
        );
        assert!(
            text.contains("proxy_requests_total{cluster=\"a\"} 3"),
            "{text}"
        );
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
    }

    #[test]
    fn describes_every_instrument_even_before_its_first_sample() {
        let metrics = Metrics::new();
        let _unused = metrics.histogram_vec("b_seconds", "How long.", &["x", "y"], SECONDS);
        let _unused = metrics.counter("a_total", "How many.");
        let text = metrics.describe();
        let rows: Vec<&str> = text.lines().skip(2).collect();
        let a = "| `a_total` | counter |  | How many. |";
        assert_eq!(rows, [a, "| `b_seconds` | histogram | x, y | How long. |"]);
    }

    #[test]
    fn of_clusters_only_what_moved_is_told() {
        let metrics = Metrics::new();
        let bytes = metrics.counter_vec("a_total", "Bytes.", &["cluster"]);
        let open = metrics.gauge_vec("b_open", "Open.", &["cluster"]);
        let times = metrics.times_vec("c_seconds", "Times.", &["cluster"]);
        for cluster in ["quiet", UNROUTED] {
            let _ = bytes.with_label_values(&[cluster]);
            let _ = times.with_label_values(&[cluster]);
            open.with_label_values(&[cluster]).set(0);
        }
        let text = metrics.render();
        for (line, told) in [
            ("a_total{cluster=\"_unrouted\"} 0", true),
            ("c_seconds_count{cluster=\"_unrouted\"} 0", true),
            ("b_open{cluster=\"quiet\"} 0", true),
            ("a_total{cluster=\"quiet\"} 0", false),
            ("c_seconds_count{cluster=\"quiet\"} 0", false),
        ] {
            assert_eq!(text.lines().any(|seen| seen == line), told, "{line}");
        }
        bytes.with_label_values(&["quiet"]).inc();
        assert!(metrics.render().contains("a_total{cluster=\"quiet\"} 1"));
    }

    #[test]
    fn a_cluster_that_is_gone_takes_its_series_along() {
        let metrics = Metrics::new();
        let bytes = metrics.counter_vec("a_total", "Bytes.", &["kind", "cluster"]);
        let times = metrics.times_vec("b_seconds", "Times.", &["cluster"]);
        for cluster in ["goes", "go", "stays\"", UNROUTED] {
            bytes.with_label_values(&["x", cluster]).inc();
            times.with_label_values(&[cluster]).observe(1.0);
        }
        metrics.forget_clusters(["goes", "stays\"", "never"].into_iter());
        let text = metrics.render();
        assert!(!text.contains("goes") && !text.contains("stays"), "{text}");
        for line in [
            "a_total{cluster=\"go\",kind=\"x\"} 1",
            "b_seconds_count{cluster=\"_unrouted\"} 1",
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line}:\n{text}");
        }
        bytes.with_label_values(&["x", "goes"]).inc();
        let text = metrics.render();
        assert!(
            text.contains("a_total{cluster=\"goes\",kind=\"x\"} 1"),
            "it starts anew"
        );
    }

    #[test]
    #[should_panic(expected = "a_total is registered twice")]
    fn a_name_that_stands_twice_is_a_defect() {
        let metrics = Metrics::new();
        let _first = metrics.counter("a_total", "One.");
        let _second = metrics.gauge("a_total", "Another.");
    }

    #[test]
    fn families_stand_in_the_order_of_their_names() {
        let metrics = Metrics::new();
        let _b = metrics.counter("b_total", "B.");
        let family = family::Family {
            name: "a_open",
            kind: family::Kind::Gauge,
            help: "Says \\ and\nmore.",
            labels: &[],
        };
        metrics.collect(&[family], Box::new(|told| told[0].integer(&[], 4)));
        let text = metrics.render();
        let wanted = "# HELP a_open Says \\\\ and\\nmore.\n# TYPE a_open gauge\na_open 4\n# HELP b_total B.\n# TYPE b_total counter\nb_total 0\n";
        assert!(text.starts_with(wanted), "{text}");
    }
}
