//! Families that are counted elsewhere and read when somebody scrapes.

use prometheus::core::{Collector, Desc};
use prometheus::proto;

use super::octave::{OCTAVES, Spread};
use super::{Described, Metrics};

/// What a family holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A distribution over octaves.
    Histogram,
}

/// A family: its name and what it means.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What it means.
    pub help: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}

/// One series of a family.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The values of its labels, in the order of their names in the family.
    pub labels: Vec<String>,
    /// What it tells.
    pub value: Value,
}

/// What a series tells.
#[derive(Debug, Clone)]
pub enum Value {
    /// A counter or gauge.
    Number(f64),
    /// A distribution.
    Spread(Box<Spread>),
}

impl Sample {
    /// A number with these labels.
    #[must_use]
    pub fn number(labels: &[&str], value: f64) -> Self {
        Self::new(labels, Value::Number(value))
    }

    /// A distribution with these labels.
    #[must_use]
    pub fn spread(labels: &[&str], spread: Spread) -> Self {
        Self::new(labels, Value::Spread(Box::new(spread)))
    }

    fn new(labels: &[&str], value: Value) -> Self {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        Self { labels, value }
    }
}

/// Reads the families, in their order.
pub type Fill = Box<dyn Fn() -> Vec<Vec<Sample>> + Send + Sync>;

struct Source {
    families: Vec<(Family, Desc)>,
    fill: Fill,
}

impl Metrics {
    /// Registers families that `fill` reads at each scrape: one list of series for
    /// each family.
    pub fn collect(&self, families: &[Family], fill: Fill) {
        let families: Vec<_> = families
            .iter()
            .map(|family| (*family, describe(family)))
            .collect();
        let mut described = self.described.lock();
        described.extend(families.iter().map(|(family, _)| Described {
            name: family.name.to_owned(),
            kind: family.kind.as_str(),
            labels: family.labels.join(", "),
            help: family.help.to_owned(),
        }));
        drop(described);
        self.collector(Box::new(Source { families, fill }));
    }
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }

    fn proto(self) -> proto::MetricType {
        match self {
            Self::Counter => proto::MetricType::COUNTER,
            Self::Gauge => proto::MetricType::GAUGE,
            Self::Histogram => proto::MetricType::HISTOGRAM,
        }
    }
}

fn describe(family: &Family) -> Desc {
    let labels = family.labels.iter().map(|label| (*label).to_owned());
    Desc::new(
        family.name.to_owned(),
        family.help.to_owned(),
        labels.collect(),
        std::collections::HashMap::new(),
    )
    .expect("metric names and labels are literals that parse")
}

impl Collector for Source {
    fn desc(&self) -> Vec<&Desc> {
        self.families.iter().map(|(_, desc)| desc).collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let filled = (self.fill)();
        let families = self.families.iter().map(|(family, _)| family);
        families
            .zip(filled)
            .map(|(family, samples)| {
                let mut told = proto::MetricFamily::default();
                told.set_name(family.name.to_owned());
                told.set_help(family.help.to_owned());
                told.set_field_type(family.kind.proto());
                told.set_metric(samples.into_iter().map(|it| metric(family, it)).collect());
                told
            })
            .collect()
    }
}

fn metric(family: &Family, sample: Sample) -> proto::Metric {
    let mut pairs: Vec<_> = family
        .labels
        .iter()
        .zip(sample.labels)
        .map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value);
            pair
        })
        .collect();
    pairs.sort_by(|a, b| a.name().cmp(b.name()));
    let mut metric = proto::Metric::from_label(pairs);
    match (sample.value, family.kind) {
        (Value::Number(value), Kind::Counter) => {
            let mut counter = proto::Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        (Value::Number(value), _) => {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        (Value::Spread(spread), _) => metric.set_histogram(histogram(&spread)),
    }
    metric
}

fn histogram(spread: &Spread) -> proto::Histogram {
    let mut histogram = proto::Histogram::default();
    let mut below = 0;
    let buckets = OCTAVES.iter().zip(spread.buckets).map(|(bound, count)| {
        below += count;
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(below);
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(spread.count());
    histogram.set_sample_sum(spread.sum_s);
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILIES: &[Family] = &[
        Family {
            name: "demo_seconds",
            kind: Kind::Histogram,
            help: "How long.",
            labels: &["zone", "cluster"],
        },
        Family {
            name: "demo_total",
            kind: Kind::Counter,
            help: "How many.",
            labels: &["cluster"],
        },
    ];

    #[test]
    fn what_is_read_at_a_scrape_stands_in_the_text() {
        let metrics = Metrics::new();
        let hostile = format!("a\"b\nc\\{}", "x".repeat(10_000));
        let name = hostile.clone();
        metrics.collect(
            FAMILIES,
            Box::new(move || {
                let mut spread = Spread::default();
                spread.buckets[1] = 2;
                spread.buckets[27] = 1;
                spread.sum_s = 70.5;
                vec![
                    vec![Sample::spread(&["z", "a"], spread)],
                    vec![Sample::number(&[&name], 3.0)],
                ]
            }),
        );
        let text = metrics.render();
        for line in [
            "# TYPE demo_seconds histogram",
            "demo_seconds_bucket{cluster=\"a\",zone=\"z\",le=\"0.00000095367431640625\"} 0",
            "demo_seconds_bucket{cluster=\"a\",zone=\"z\",le=\"0.0000019073486328125\"} 2",
            "demo_seconds_bucket{cluster=\"a\",zone=\"z\",le=\"64\"} 2",
            "demo_seconds_bucket{cluster=\"a\",zone=\"z\",le=\"+Inf\"} 3",
            "demo_seconds_sum{cluster=\"a\",zone=\"z\"} 70.5",
            "demo_seconds_count{cluster=\"a\",zone=\"z\"} 3",
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line}:\n{text}");
        }
        let escaped = format!(
            "demo_total{{cluster=\"a\\\"b\\nc\\\\{}\"}} 3",
            "x".repeat(10_000)
        );
        assert!(text.lines().any(|seen| seen == escaped));
        assert!(
            metrics
                .describe()
                .contains("| `demo_total` | counter | cluster | How many. |")
        );
    }
}
