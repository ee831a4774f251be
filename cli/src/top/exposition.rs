//! Reads what a data plane exposes to Prometheus, as far as `top` shows it. Pure.

use std::collections::BTreeMap;

/// A distribution: samples up to each bound.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spread(BTreeMap<u64, f64>);

/// What one scrape says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scrape {
    /// The observer's tier.
    pub tier: String,
    /// Residence by cluster, direction and queue.
    pub residence: BTreeMap<[String; 3], Spread>,
    /// Round trips by cluster and leg.
    pub rtt: BTreeMap<[String; 2], Spread>,
    /// Records of closed connections that were lost.
    pub lost: f64,
    /// Seconds in the observer's programs.
    pub program_s: f64,
}

impl Spread {
    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: Option<&Self>) -> Self {
        let before = |bound: &u64| {
            earlier
                .and_then(|it| it.0.get(bound))
                .copied()
                .unwrap_or(0.0)
        };
        let new = |(bound, count): (&u64, &f64)| (*bound, (count - before(bound)).max(0.0));
        Self(self.0.iter().map(new).collect())
    }

    /// How many samples.
    #[must_use]
    pub fn count(&self) -> f64 {
        self.0.values().copied().fold(0.0, f64::max)
    }

    /// The bound in seconds below which this part lies; `None` of nothing.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let rank = self.count() * part;
        let (bound, _) = self
            .0
            .iter()
            .find(|(_, count)| **count > 0.0 && **count >= rank)?;
        Some(f64::from_bits(*bound))
    }

    /// Samples between each bound and the one before.
    #[must_use]
    pub fn bars(&self) -> Vec<(f64, f64)> {
        let mut before = 0.0;
        let bar = |(bound, count): (&u64, &f64)| {
            let bar = (f64::from_bits(*bound), count - before);
            before = *count;
            bar
        };
        self.0.iter().map(bar).collect()
    }

    /// Adds another one's samples.
    pub fn add(&mut self, other: &Self) {
        for (bound, count) in &other.0 {
            *self.0.entry(*bound).or_default() += count;
        }
    }
}

impl Scrape {
    /// Reads an exposition.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut scrape = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, labels, value)) = series(line) else {
                continue;
            };
            let label = |name: &str| {
                let found = labels.iter().find(|(key, _)| key == name);
                found.map_or(String::new(), |(_, value)| value.clone())
            };
            // Bounds are not negative: their bits are in order.
            let bound = || label("le").parse::<f64>().map(f64::to_bits);
            match name {
                "culvert_relay_residence_seconds_bucket" => {
                    let key = ["cluster", "direction", "queue"].map(label);
                    if let Ok(bound) = bound() {
                        scrape
                            .residence
                            .entry(key)
                            .or_default()
                            .0
                            .insert(bound, value);
                    }
                }
                "culvert_tcp_rtt_seconds_bucket" => {
                    if let Ok(bound) = bound() {
                        let key = ["cluster", "leg"].map(label);
                        scrape.rtt.entry(key).or_default().0.insert(bound, value);
                    }
                }
                "culvert_ebpf_events_lost_total" => scrape.lost = value,
                "culvert_ebpf_program_run_seconds_total" => scrape.program_s += value,
                "culvert_ebpf_tier" if value > 0.0 => scrape.tier = label("tier"),
                _ => {}
            }
        }
        scrape
    }

    /// Residence of one direction and queue, of one cluster or of all.
    #[must_use]
    pub fn residence(&self, cluster: Option<&str>, direction: &str, queue: &str) -> Spread {
        let mut sum = Spread::default();
        for ([of, way, state], spread) in &self.residence {
            if way == direction && state == queue && cluster.is_none_or(|wanted| wanted == of) {
                sum.add(spread);
            }
        }
        sum
    }

    /// Round trips of one leg, of one cluster or of all.
    #[must_use]
    pub fn rtt(&self, cluster: Option<&str>, leg: &str) -> Spread {
        let mut sum = Spread::default();
        for ([of, name], spread) in &self.rtt {
            if name == leg && cluster.is_none_or(|wanted| wanted == of) {
                sum.add(spread);
            }
        }
        sum
    }
}

type Labels = Vec<(String, String)>;

/// `name{label="value",...} number`.
fn series(line: &str) -> Option<(&str, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    Some((name, labels, rest.trim().parse().ok()?))
}

fn labels(mut rest: &str) -> Option<(Labels, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (key, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.push((key.to_owned(), value));
        rest = &after[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# TYPE culvert_relay_residence_seconds histogram
culvert_relay_residence_seconds_bucket{cluster="a\"b\\c\nd",direction="to_service",queue="empty",le="0.5"} 3
culvert_relay_residence_seconds_bucket{cluster="a\"b\\c\nd",direction="to_service",queue="empty",le="1"} 4
culvert_relay_residence_seconds_bucket{cluster="a\"b\\c\nd",direction="to_service",queue="empty",le="+Inf"} 4
culvert_tcp_rtt_seconds_bucket{cluster="x",leg="client",le="0.25"} 10
culvert_tcp_rtt_seconds_bucket{cluster="x",leg="client",le="+Inf"} 12
culvert_ebpf_tier{tier="skb"} 1
culvert_ebpf_tier{tier="sockops"} 0
culvert_ebpf_events_lost_total 7
a line that is none
"#;

    #[test]
    fn a_scrape_is_read_names_with_quotes_and_newlines_too() {
        let scrape = Scrape::parse(TEXT);
        assert_eq!((scrape.tier.as_str(), scrape.lost), ("skb", 7.0));
        let name = "a\"b\\c\nd";
        let residence = scrape.residence(Some(name), "to_service", "empty");
        assert_eq!(residence.count(), 4.0);
        assert_eq!(residence.quantile(0.5), Some(0.5));
        assert_eq!(residence.quantile(0.99), Some(1.0));
        assert_eq!(residence.bars()[..2], [(0.5, 3.0), (1.0, 1.0)]);
        assert_eq!(
            scrape.residence(Some("b"), "to_service", "empty").count(),
            0.0
        );
        assert_eq!(
            scrape.rtt(None, "client").quantile(0.99),
            Some(f64::INFINITY)
        );
    }

    #[test]
    fn what_came_since_the_last_scrape_counts() {
        let scrape = Scrape::parse(TEXT);
        let now = scrape.rtt(None, "client");
        assert_eq!(now.since(Some(&now)).count(), 0.0);
        assert_eq!(now.since(Some(&now)).quantile(0.5), None);
        assert_eq!(now.since(None).count(), 12.0);
    }
}
