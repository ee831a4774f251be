//! What a run leaves behind: raw.csv, host.txt, histograms.csv, summary.md (losses first), plots.
//!
//! A directory may be filled scenario by scenario: what an earlier call left of other scenarios
//! is read back, and the summary and the plots are made from all of it.

mod figure;
mod findings;
mod plot;
mod store;
mod table;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::run::Taken;
use crate::sample::Sample;
use crate::scenario::Scenario;

use findings::Finding;

/// The samples of one scenario.
pub struct Outcome {
    /// File name of the scenario, without its ending.
    pub name: String,
    /// What was asked.
    pub scenario: Scenario,
    /// What was measured.
    pub samples: Vec<Sample>,
    /// Latency of the samples that count, by stage and variant.
    pub histograms: BTreeMap<(String, String), Histogram<u64>>,
    /// Command lines, by variant.
    pub records: BTreeMap<String, String>,
}

impl Outcome {
    /// From what a run took.
    pub fn new(name: String, scenario: Scenario, taken: Taken) -> Outcome {
        let mut histograms = BTreeMap::new();
        for (stage, variant) in groups(&taken.samples) {
            if let Some(merged) = merged(&taken.samples, &stage, &variant) {
                histograms.insert((stage, variant), merged);
            }
        }
        Outcome {
            name,
            scenario,
            samples: taken.samples,
            histograms,
            records: taken.records,
        }
    }
}

/// Writes everything into `directory`, beside what it holds of other scenarios; `scenarios` is
/// where their files are.
///
/// # Errors
/// When a file cannot be written, or an earlier one is not as written.
pub fn write(directory: &Path, outcomes: Vec<Outcome>, host: &str, scenarios: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let host = store::host(directory, &outcomes, host)?;
    let mut all = store::read(directory, scenarios)?;
    let measured: Vec<String> = outcomes
        .iter()
        .map(|outcome| outcome.name.clone())
        .collect();
    all.retain(|outcome| !measured.contains(&outcome.name));
    all.extend(outcomes);
    all.sort_by(|one, other| one.name.cmp(&other.name));
    store::write(directory, &all)?;
    fs::write(directory.join("host.txt"), host)?;
    fs::write(directory.join("summary.md"), summary(&all)?)?;
    plot::all(directory, &all)
}

/// Stages and variants that occur, in order of appearance.
fn groups(samples: &[Sample]) -> Vec<(String, String)> {
    let mut groups: Vec<(String, String)> = Vec::new();
    for sample in samples {
        let key = (sample.stage.clone(), sample.variant.clone());
        if !groups.contains(&key) {
            groups.push(key);
        }
    }
    groups
}

/// Samples of a group that count.
fn good<'a>(samples: &'a [Sample], stage: &str, variant: &str) -> Vec<&'a Sample> {
    samples
        .iter()
        .filter(|sample| sample.stage == stage && sample.variant == variant)
        .filter(|sample| sample.dropped.is_empty())
        .collect()
}

fn merged(samples: &[Sample], stage: &str, variant: &str) -> Option<Histogram<u64>> {
    let mut all: Option<Histogram<u64>> = None;
    for sample in good(samples, stage, variant) {
        let Some(one) = &sample.latency else { continue };
        match &mut all {
            Some(all) => all.add(one).ok()?,
            None => all = Some(one.clone()),
        }
    }
    all
}

fn summary(outcomes: &[Outcome]) -> Result<String> {
    let findings: Vec<Finding> = outcomes.iter().flat_map(findings::of).collect();
    let mut text =
        String::from("# Summary\n\nGenerated; the rows are in raw.csv, the host in host.txt.\n");
    let layout = "Layout `hop`: one relay on CPU 0, generator and service on CPU 1. Layout `tunnel`: hub \
                  and agent on CPU 0, the rest on CPU 1. One worker thread each; figures of \
                  different layouts are never compared. CPU is that of relay threads, their \
                  io_uring workers, kworkers and ksoftirqd; of the generator for `direct` in layout \
                  `hop`. Loopback hides packet cost, round trips and windows. A ratio is the median \
                  of paired rounds [smallest-largest] with its 95 % bootstrap interval; where \
                  the host was noisy in some rounds, the ratio over all of them follows.";
    writeln!(text, "{layout}\n\n## Missed\n")?;
    list(&mut text, findings.iter().filter(|finding| !finding.met))?;
    writeln!(text, "\n## Not measured\n")?;
    absent(&mut text, outcomes)?;
    writeln!(text, "\n## Met\n")?;
    list(&mut text, findings.iter().filter(|finding| finding.met))?;
    for outcome in outcomes {
        writeln!(text, "\n## {}\n", outcome.scenario.title)?;
        table::of(&mut text, outcome)?;
    }
    writeln!(text, "\n## Dropped samples\n")?;
    dropped(&mut text, outcomes)?;
    Ok(text)
}

const ABSENT: &str = "not measured: ";

fn absent(text: &mut String, outcomes: &[Outcome]) -> Result<()> {
    let mut any = false;
    for sample in outcomes.iter().flat_map(|outcome| &outcome.samples) {
        if let Some(why) = sample.dropped.strip_prefix(ABSENT) {
            any = true;
            let why = why.lines().next().unwrap_or_default();
            writeln!(text, "- {}, {}: {why}", sample.scenario, sample.variant)?;
        }
    }
    if !any {
        writeln!(text, "Nobody was left out.")?;
    }
    Ok(())
}

/// How many samples of each group do not count, and the reason of the last.
fn dropped(text: &mut String, outcomes: &[Outcome]) -> Result<()> {
    let mut any = false;
    for outcome in outcomes {
        for (stage, variant) in groups(&outcome.samples) {
            let of_group = |sample: &&Sample| sample.stage == stage && sample.variant == variant;
            let all = outcome.samples.iter().filter(of_group);
            let bad: Vec<&Sample> = all
                .clone()
                .filter(|sample| !sample.dropped.is_empty() && !sample.dropped.starts_with(ABSENT))
                .collect();
            if let Some(last) = bad.last() {
                any = true;
                let (bad, all, why) = (bad.len(), all.count(), &last.dropped);
                let name = &outcome.name;
                writeln!(
                    text,
                    "- {name}, {stage}, {variant}: {bad} of {all}, the last: {why}"
                )?;
            }
        }
    }
    if !any {
        writeln!(text, "None.")?;
    }
    Ok(())
}

fn list<'a>(text: &mut String, findings: impl Iterator<Item = &'a Finding>) -> Result<()> {
    let mut any = false;
    for finding in findings {
        any = true;
        writeln!(text, "- {}", finding.text)?;
    }
    if !any {
        writeln!(text, "None.")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Kind;

    fn sample(variant: &str, round: usize, hub_ns: u64, p99: u64) -> Sample {
        Sample {
            scenario: "t".into(),
            stage: "capacity".into(),
            layout: "tunnel".into(),
            variant: variant.into(),
            round,
            answers: 1000,
            seconds: 1.0,
            hub_ns,
            latency_us: [1, 1, p99, p99, p99],
            ..Sample::default()
        }
    }

    #[test]
    fn losses_come_first_and_dropped_samples_are_counted() {
        let mut samples = Vec::new();
        for round in 0..5 {
            samples.push(sample("direct", round, 1, 10));
            samples.push(sample("nginx two hops", round, 1_000_000_000, 30));
            samples.push(sample("culvert", round, 2_000_000_000, 50));
        }
        samples.push(Sample {
            dropped: "noise".into(),
            ..sample("culvert", 5, 1, 1)
        });
        let scenario = Scenario {
            title: "Test".into(),
            rounds: 5,
            topology: crate::lab::Topology::Lo,
            target: vec![],
            kind: Kind::Requests {
                variants: vec![],
                connections: 1,
                capacity_seconds: 1.0,
                window_seconds: 1.0,
                rates: vec![],
                poisson: false,
            },
        };
        let outcome = Outcome::new("t".into(), scenario, samples.into());
        let text = summary(&[outcome]).unwrap();
        let missed = text.split("## Not measured").next().unwrap();
        assert!(
            missed.contains("0.50"),
            "half of the rival's requests per CPU-second: {text}"
        );
        assert!(text.contains("1 of 6, the last: noise"));
    }
}
