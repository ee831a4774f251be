//! The metrics of one process: the only file that knows the `prometheus` crate.
//!
//! Labels are bounded: small enumerations, or a cluster through
//! [`ClusterLabels`]. Nothing per user, path or connection.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
pub use prometheus::core::Collector;
pub use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use prometheus::{HistogramOpts, Opts, Registry, TextEncoder};

/// Clusters that get a label of their own; the rest share [`OVERFLOW`].
pub const CLUSTER_LABELS_MAX: usize = 1024;
/// The label of every cluster beyond [`CLUSTER_LABELS_MAX`].
pub const OVERFLOW: &str = "_overflow";
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

    /// Adds a collector that fills itself at scrape time.
    pub fn collector(&self, collector: Box<dyn Collector>) {
        self.registry
            .register(collector)
            .expect("metric names are unique in a process");
    }

    /// The exposition text of all instruments.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        TextEncoder::new()
            .encode_utf8(&self.registry.gather(), &mut text)
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

/// Gives each cluster its own label until [`CLUSTER_LABELS_MAX`] are in use.
///
/// ```
/// use culvert_telemetry::metrics::{CLUSTER_LABELS_MAX, ClusterLabels, OVERFLOW};
///
/// let labels = ClusterLabels::default();
/// for n in 0..CLUSTER_LABELS_MAX {
///     labels.label(&format!("c{n}"));
/// }
/// assert_eq!((labels.label("c0"), labels.label("late")), ("c0", OVERFLOW));
/// ```
#[derive(Default)]
pub struct ClusterLabels(RwLock<HashSet<Box<str>>>);

impl ClusterLabels {
    /// The label for `cluster`: its own name, or [`OVERFLOW`].
    pub fn label<'a>(&self, cluster: &'a str) -> &'a str {
        if self.0.read().contains(cluster) {
            return cluster;
        }
        let mut known = self.0.write();
        if known.contains(cluster) {
            return cluster;
        }
        if known.len() >= CLUSTER_LABELS_MAX {
            return OVERFLOW;
        }
        known.insert(cluster.into());
        cluster
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
}
