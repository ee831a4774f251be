//! The metrics of one process: the only room that knows the `prometheus` crate.
//!
//! Labels are bounded: small enumerations, or a cluster through
//! [`ClusterLabels`]. Nothing per user, path or connection.

pub mod family;
pub mod octave;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
pub use prometheus::core::Collector;
pub use prometheus::{
    Counter, CounterVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};
use prometheus::{HistogramOpts, Opts, Registry, TextEncoder, proto};

use octave::OCTAVES;

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
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Registry,
    described: Arc<Mutex<Vec<Described>>>,
}

struct Described {
    name: String,
    kind: &'static str,
    labels: String,
    help: String,
}

impl Metrics {
    /// An empty registry that also carries `process_*`.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self::default();
        metrics.collector(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ));
        metrics
    }

    /// A counter without labels.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(
            IntCounter::with_opts(Opts::new(name, help)),
            (name, "counter", &[], help),
        )
    }

    /// A counter with labels.
    #[must_use]
    pub fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(
            IntCounterVec::new(Opts::new(name, help), labels),
            (name, "counter", labels, help),
        )
    }

    /// A gauge without labels.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(
            IntGauge::with_opts(Opts::new(name, help)),
            (name, "gauge", &[], help),
        )
    }

    /// A gauge with labels.
    #[must_use]
    pub fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(
            IntGaugeVec::new(Opts::new(name, help), labels),
            (name, "gauge", labels, help),
        )
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
        let opts = HistogramOpts::new(name, help).buckets(bounds.to_vec());
        self.add(
            HistogramVec::new(opts, labels),
            (name, "histogram", labels, help),
        )
    }

    /// A counter of seconds, with labels.
    #[must_use]
    pub fn seconds_vec(&self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        self.add(
            CounterVec::new(Opts::new(name, help), labels),
            (name, "counter", labels, help),
        )
    }

    /// A histogram of times with labels, over octaves from 0.95 us to 64 s.
    #[must_use]
    pub fn times_vec(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        self.histogram_vec(name, help, labels, OCTAVES)
    }

    /// Adds a collector that fills itself at scrape time.
    pub fn collector(&self, collector: Box<dyn Collector>) {
        self.registry
            .register(collector)
            .expect("metric names are unique in a process");
    }

    /// The exposition text of all instruments. Of clusters it leaves out what
    /// never moved: a thousand of them would say nothing a hundred times each.
    #[must_use]
    pub fn render(&self) -> String {
        let mut families = self.registry.gather();
        for family in &mut families {
            let moves = family.get_field_type() != proto::MetricType::GAUGE;
            if moves && family.get_metric().iter().any(is_silent) {
                let told = family.take_metric();
                family.set_metric(told.into_iter().filter(|it| !is_silent(it)).collect());
            }
        }
        families.retain(|family| !family.get_metric().is_empty());
        let mut text = String::with_capacity(64 * 1024);
        TextEncoder::new()
            .encode_utf8(&families, &mut text)
            .expect("registered families encode");
        text
    }

    /// All instruments as a Markdown table, in the order of their names.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut described = self.described.lock();
        described.sort_by(|a, b| a.name.cmp(&b.name));
        let mut text = "| name | type | labels | what |\n|---|---|---|---|\n".to_owned();
        for Described {
            name,
            kind,
            labels,
            help,
        } in described.iter()
        {
            let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {help} |");
        }
        text
    }

    fn add<C: Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
        (name, kind, labels, help): (&str, &'static str, &[&str], &str),
    ) -> C {
        let instrument = made.expect("metric names and labels are literals that parse");
        self.collector(Box::new(instrument.clone()));
        self.described.lock().push(Described {
            name: name.to_owned(),
            kind,
            labels: labels.join(", "),
            help: help.to_owned(),
        });
        instrument
    }
}

/// A counter or distribution of a cluster that nothing went into. Those of
/// nobody in particular stay: they say that the family exists.
fn is_silent(metric: &proto::Metric) -> bool {
    let of_cluster = |pair: &proto::LabelPair| pair.name() == "cluster" && pair.value() != UNROUTED;
    metric.get_counter().get_value() == 0.0
        && metric.get_histogram().get_sample_count() == 0
        && metric.get_label().iter().any(of_cluster)
}

/// Which clusters have histograms of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ClusterHistograms {
    /// The first [`CLUSTER_HISTOGRAMS_MAX`].
    #[default]
    Auto,
    /// All that have a label.
    All,
    /// None.
    None,
    /// These.
    Named(Vec<String>),
}

/// Gives each cluster its own label until so many are in use.
///
/// ```
/// use culvert_telemetry::metrics::{CLUSTER_LABELS_MAX, ClusterLabels, OTHER, OVERFLOW};
///
/// let labels = ClusterLabels::default();
/// for n in 0..CLUSTER_LABELS_MAX {
///     labels.label(&format!("c{n}"));
/// }
/// assert_eq!((labels.label("c0"), labels.label("late")), ("c0", OVERFLOW));
/// assert_eq!((labels.histogram("c0"), labels.histogram("c900")), ("c0", OTHER));
/// ```
pub struct ClusterLabels {
    /// And whether it has histograms of its own.
    known: RwLock<HashMap<Box<str>, bool>>,
    clusters_max: usize,
    histograms: ClusterHistograms,
    overflowed: AtomicU64,
}

impl Default for ClusterLabels {
    fn default() -> Self {
        Self::new(CLUSTER_LABELS_MAX, ClusterHistograms::Auto)
    }
}

impl ClusterLabels {
    /// At most `clusters_max` labels.
    #[must_use]
    pub fn new(clusters_max: usize, histograms: ClusterHistograms) -> Self {
        Self {
            known: RwLock::default(),
            clusters_max,
            histograms,
            overflowed: AtomicU64::new(0),
        }
    }

    /// How often a cluster was sent to [`OVERFLOW`].
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// The label for `cluster`: its own name, or [`OVERFLOW`].
    pub fn label<'a>(&self, cluster: &'a str) -> &'a str {
        match self.find(cluster) {
            Some(_) => cluster,
            None => {
                self.overflowed.fetch_add(1, Ordering::Relaxed);
                OVERFLOW
            }
        }
    }

    /// The label for `cluster` in histograms: its own name, or [`OTHER`], so that
    /// no sum counts it twice.
    pub fn histogram<'a>(&self, cluster: &'a str) -> &'a str {
        match self.find(cluster) {
            Some(true) => cluster,
            _ => OTHER,
        }
    }

    /// Whether it has histograms of its own; `None` when it has no label.
    fn find(&self, cluster: &str) -> Option<bool> {
        if cluster.starts_with('_') {
            return Some(true);
        }
        if let Some(own) = self.known.read().get(cluster) {
            return Some(*own);
        }
        let mut known = self.known.write();
        if let Some(own) = known.get(cluster) {
            return Some(*own);
        }
        if known.len() >= self.clusters_max {
            return None;
        }
        let own = match &self.histograms {
            ClusterHistograms::Auto => known.len() < CLUSTER_HISTOGRAMS_MAX,
            ClusterHistograms::All => true,
            ClusterHistograms::None => false,
            ClusterHistograms::Named(names) => names.iter().any(|name| name == cluster),
        };
        known.insert(cluster.into(), own);
        Some(own)
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
    fn the_cluster_after_the_last_label_overflows() {
        let labels = ClusterLabels::default();
        for i in 0..CLUSTER_LABELS_MAX {
            let name = format!("c{i}");
            assert_eq!(labels.label(&name), name);
        }
        assert_eq!(labels.label("one-more"), OVERFLOW);
        assert_eq!(labels.label("c0"), "c0");
    }

    #[test]
    fn who_has_histograms_of_its_own_is_said_or_comes_first() {
        let named = ClusterHistograms::Named(vec!["c40".to_owned()]);
        for (histograms, own) in [
            (ClusterHistograms::Auto, 32),
            (ClusterHistograms::All, 50),
            (ClusterHistograms::None, 0),
            (named, 1),
        ] {
            let labels = ClusterLabels::new(50, histograms.clone());
            let names: Vec<_> = (0..60).map(|n| format!("c{n}")).collect();
            let shown = |name: &&String| labels.histogram(name) == name.as_str();
            assert_eq!(names.iter().filter(shown).count(), own, "{histograms:?}");
            assert_eq!(labels.histogram(UNROUTED), UNROUTED);
        }
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
}
