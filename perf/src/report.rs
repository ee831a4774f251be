//! What a run leaves behind: raw.csv, host.txt, summary.md (losses first), plots.

mod findings;
mod plot;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::sample::Sample;
use crate::scenario::Scenario;
use crate::statistics::median;

use findings::Finding;

/// The samples of one scenario.
pub struct Outcome {
    /// File name of the scenario, without its ending.
    pub name: String,
    /// What was asked.
    pub scenario: Scenario,
    /// What was measured.
    pub samples: Vec<Sample>,
}

/// Writes everything into `directory`.
///
/// # Errors
/// When a file cannot be written.
pub fn write(directory: &Path, outcomes: &[Outcome], host: &str) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let mut raw = format!("{}\n", Sample::HEADER);
    for sample in outcomes.iter().flat_map(|outcome| &outcome.samples) {
        raw.push_str(&sample.row());
        raw.push('\n');
    }
    fs::write(directory.join("raw.csv"), raw)?;
    fs::write(directory.join("host.txt"), host)?;
    fs::write(directory.join("histograms.csv"), histograms(outcomes)?)?;
    fs::write(directory.join("summary.md"), summary(outcomes)?)?;
    plot::all(directory, outcomes)
}

/// Latency of all rounds of a variant and stage together, as value and count.
fn histograms(outcomes: &[Outcome]) -> Result<String> {
    let mut text = String::from("scenario,stage,variant,latency_us,count\n");
    for outcome in outcomes {
        for (stage, variant) in groups(&outcome.samples) {
            let Some(merged) = merged(&outcome.samples, &stage, &variant) else {
                continue;
            };
            for step in merged.iter_recorded() {
                writeln!(
                    text,
                    "{},{stage},\"{variant}\",{},{}",
                    outcome.name,
                    step.value_iterated_to(),
                    step.count_at_value()
                )?;
            }
        }
    }
    Ok(text)
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

fn merged(samples: &[Sample], stage: &str, variant: &str) -> Option<hdrhistogram::Histogram<u64>> {
    let mut all: Option<hdrhistogram::Histogram<u64>> = None;
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
    let layout = "Layout `tunnel`, topology `lo`: hub and agent on one CPU, generator and service \
                  on another, one worker thread each. Loopback hides packet cost, RTT and windows.";
    writeln!(text, "{layout}\n\n## Missed\n")?;
    list(&mut text, findings.iter().filter(|finding| !finding.met))?;
    writeln!(text, "\n## Dropped samples\n")?;
    let dropped: Vec<&Sample> = outcomes
        .iter()
        .flat_map(|outcome| &outcome.samples)
        .filter(|sample| !sample.dropped.is_empty())
        .collect();
    for sample in &dropped {
        let Sample {
            scenario,
            stage,
            variant,
            round,
            dropped,
            ..
        } = sample;
        writeln!(
            text,
            "- {scenario}, {stage}, {variant}, round {round}: {dropped}"
        )?;
    }
    if dropped.is_empty() {
        writeln!(text, "None.")?;
    }
    writeln!(text, "\n## Met\n")?;
    list(&mut text, findings.iter().filter(|finding| finding.met))?;
    for outcome in outcomes {
        writeln!(text, "\n## {}\n", outcome.scenario.title)?;
        table(&mut text, outcome)?;
    }
    Ok(text)
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

fn table(text: &mut String, outcome: &Outcome) -> Result<()> {
    if let crate::scenario::Kind::IdleAgents { .. } = outcome.scenario.kind {
        return idle_table(text, outcome);
    }
    writeln!(
        text,
        "Medians over the rounds that count.\n\n\
         | stage | variant | answers/s | answers per relay CPU-s | GiB per relay CPU-s | GiB/s | \
         p50 us | p99 us | p99.9 us | rounds |\n|---|---|---|---|---|---|---|---|---|---|"
    )?;
    for (stage, variant) in groups(&outcome.samples) {
        let rows = good(&outcome.samples, &stage, &variant);
        let of = |value: &dyn Fn(&Sample) -> f64| {
            median(&rows.iter().map(|sample| value(sample)).collect::<Vec<_>>())
        };
        let float = crate::sample::float;
        if rows.is_empty() {
            writeln!(
                text,
                "| {stage} | {variant} | - | - | - | - | - | - | - | 0 |"
            )?;
            continue;
        }
        writeln!(
            text,
            "| {stage} | {variant} | {:.0} | {:.0} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} | {} |",
            of(&Sample::rate),
            of(&Sample::answers_per_cpu_second),
            of(&Sample::gib_per_cpu_second),
            of(&|sample| float(sample.bytes) / f64::from(1 << 30) / sample.seconds),
            of(&|sample| float(sample.latency_us[0])),
            of(&|sample| float(sample.latency_us[2])),
            of(&|sample| float(sample.latency_us[3])),
            rows.len()
        )?;
    }
    Ok(())
}

fn idle_table(text: &mut String, outcome: &Outcome) -> Result<()> {
    writeln!(
        text,
        "| agents | hub resident KiB | hub proportional KiB | slab of all ends KiB | hub CPU % |\n\
         |---|---|---|---|---|"
    )?;
    for sample in &outcome.samples {
        let cpu = crate::sample::float(sample.hub_ns) / 1e7 / sample.seconds;
        let Sample {
            connections,
            hub_rss_kib,
            hub_pss_kib,
            slab_kib,
            ..
        } = sample;
        writeln!(
            text,
            "| {connections} | {hub_rss_kib} | {hub_pss_kib} | {slab_kib} | {cpu:.2} |"
        )?;
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
            kind: Kind::Requests {
                variants: vec![],
                connections: 1,
                capacity_seconds: 1.0,
                window_seconds: 1.0,
                rates: vec![],
                poisson: false,
            },
        };
        let outcome = Outcome {
            name: "t".into(),
            scenario,
            samples,
        };
        let text = summary(&[outcome]).unwrap();
        let missed = text.split("## Dropped").next().unwrap();
        assert!(
            missed.contains("0.50"),
            "half of the rival's requests per CPU-second: {text}"
        );
        assert!(text.contains("round 5: noise"));
    }
}
