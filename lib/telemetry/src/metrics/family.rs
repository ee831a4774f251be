//! Families that are counted elsewhere and read when somebody scrapes.

use super::octave::{OCTAVES, Spread};
use super::text::{Bounds, Labels, Series, cluster_of, head};
use super::{Described, Metrics, UNROUTED};

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

/// A family while it is told: its series are written as they are read.
pub struct Told<'a> {
    known: &'a Known,
    text: String,
    /// What the lines of the series at hand begin with.
    words: String,
}

/// Reads the families, in their order.
pub type Fill = Box<dyn Fn(&mut [Told<'_>]) + Send + Sync>;

/// Families that are read together.
pub(super) struct Source {
    families: Vec<Known>,
    fill: Fill,
}

struct Known {
    family: Family,
    labels: Labels,
    bounds: Option<Bounds>,
}

impl Told<'_> {
    /// A counter or gauge of these label values.
    pub fn number(&mut self, values: &[&str], value: f64) {
        self.tell(values, value == 0.0, |series, text| {
            series.number(value, text);
        });
    }

    /// A counter or gauge of whole things.
    pub fn integer(&mut self, values: &[&str], value: u64) {
        self.tell(values, value == 0, |series, text| {
            series.integer(value, text);
        });
    }

    /// A distribution of these label values; of families that hold some.
    pub fn spread(&mut self, values: &[&str], spread: &Spread) {
        let Some(bounds) = &self.known.bounds else {
            return;
        };
        self.tell(values, spread.count() == 0, |series, text| {
            series.histogram(bounds, spread.buckets.into_iter(), spread.sum_s, text);
        });
    }

    /// Nothing is told of a cluster to which nothing happened.
    fn tell(
        &mut self,
        values: &[&str],
        is_nothing: bool,
        write: impl FnOnce(&Series<'_>, &mut String),
    ) {
        let Known { family, labels, .. } = self.known;
        self.words.clear();
        Series::write_begin(family.name, labels, values, &mut self.words);
        let is_silent = is_nothing && family.kind != Kind::Gauge;
        if is_silent && cluster_of(&self.words).is_some_and(|cluster| cluster != UNROUTED) {
            return;
        }
        if self.text.is_empty() {
            head(
                family.name,
                family.help,
                family.kind.as_str(),
                &mut self.text,
            );
        }
        let series = Series {
            name: family.name,
            begin: &self.words,
        };
        write(&series, &mut self.text);
    }
}

impl Source {
    /// Each family's name and text, as of now.
    pub fn read(&self) -> Vec<(&'static str, String)> {
        let told = self.families.iter().map(|known| Told {
            known,
            text: String::new(),
            words: String::new(),
        });
        let mut told: Vec<_> = told.collect();
        (self.fill)(&mut told);
        let texts = told.into_iter();
        texts.map(|it| (it.known.family.name, it.text)).collect()
    }
}

impl Metrics {
    /// Registers families that `fill` reads at each scrape, each into its own place.
    pub fn collect(&self, families: &[Family], fill: Fill) {
        for family in families {
            self.describe_one(Described {
                name: family.name.to_owned(),
                kind: family.kind.as_str(),
                labels: family.labels.join(", "),
                help: family.help.to_owned(),
            });
        }
        let families = families.iter().map(|family| Known {
            family: *family,
            labels: Labels::new(family.labels),
            bounds: (family.kind == Kind::Histogram).then(|| Bounds::new(OCTAVES)),
        });
        let families = families.collect();
        self.add_source(Source { families, fill });
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
        Family {
            name: "demo_open",
            kind: Kind::Gauge,
            help: "How many now.",
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
            Box::new(move |told| {
                let mut spread = Spread::default();
                spread.buckets[1] = 2;
                spread.buckets[27] = 1;
                spread.sum_s = 70.5;
                let [seconds, total, open] = told else {
                    return;
                };
                seconds.spread(&["z", "a"], &spread);
                seconds.spread(&["z", "quiet"], &Spread::default());
                total.number(&[&name], 3.0);
                total.integer(&["quiet"], 0);
                open.integer(&["quiet"], 0);
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
            "demo_open{cluster=\"quiet\"} 0",
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line}:\n{text}");
        }
        let escaped = format!(
            "demo_total{{cluster=\"a\\\"b\\nc\\\\{}\"}} 3",
            "x".repeat(10_000)
        );
        assert!(text.lines().any(|seen| seen == escaped));
        assert_eq!(text.matches("quiet").count(), 1, "only the gauge:\n{text}");
        assert!(
            metrics
                .describe()
                .contains("| `demo_total` | counter | cluster | How many. |")
        );
    }
}
