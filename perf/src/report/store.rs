//! raw.csv, histograms.csv and host.txt: written, and read back.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Outcome, groups};
use crate::sample::Sample;
use crate::scenario::Scenario;

const RAW: &str = "raw.csv";
const HISTOGRAMS: &str = "histograms.csv";
const HISTOGRAMS_HEADER: &str = "scenario,stage,variant,latency_us,count";
/// Begins a part of host.txt.
const PART: &str = "\n== ";

/// Writes the rows.
pub(super) fn write(directory: &Path, outcomes: &[Outcome]) -> Result<()> {
    let mut raw = format!("{}\n", Sample::header());
    let mut histograms = format!("{HISTOGRAMS_HEADER}\n");
    for outcome in outcomes {
        for sample in &outcome.samples {
            writeln!(raw, "{}", sample.row())?;
        }
        for (stage, variant) in groups(&outcome.samples) {
            let Some(all) = outcome.histograms.get(&(stage.clone(), variant.clone())) else {
                continue;
            };
            for step in all.iter_recorded() {
                let (value, count) = (step.value_iterated_to(), step.count_at_value());
                let name = &outcome.name;
                writeln!(histograms, "{name},{stage},\"{variant}\",{value},{count}")?;
            }
        }
    }
    fs::write(directory.join(RAW), raw)?;
    fs::write(directory.join(HISTOGRAMS), histograms)?;
    Ok(())
}

/// Reads what an earlier call wrote; nothing where there was none.
pub(super) fn read(directory: &Path, scenarios: &Path) -> Result<Vec<Outcome>> {
    let Ok(raw) = fs::read_to_string(directory.join(RAW)) else {
        return Ok(Vec::new());
    };
    let mut lines = raw.lines();
    let header = lines.next().context("an empty raw.csv")?;
    let mut by_scenario: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    for line in lines {
        let sample = Sample::read(header, line)?;
        let all = by_scenario.entry(sample.scenario.clone()).or_default();
        all.push(sample);
    }
    let mut outcomes = Vec::new();
    for (name, samples) in by_scenario {
        let scenario = Scenario::read(&scenarios.join(format!("{name}.toml")))?;
        outcomes.push(Outcome::new(name, scenario, samples.into()));
    }
    let histograms = fs::read_to_string(directory.join(HISTOGRAMS)).unwrap_or_default();
    for line in histograms.lines().skip(1) {
        let step = || -> Option<(&str, &str, &str, u64, u64)> {
            let (front, variant_on) = line.split_once(",\"")?;
            let (name, stage) = front.split_once(',')?;
            let (variant, numbers) = variant_on.split_once("\",")?;
            let (value, count) = numbers.split_once(',')?;
            Some((
                name,
                stage,
                variant,
                value.parse().ok()?,
                count.parse().ok()?,
            ))
        };
        let (name, stage, variant, value, count) =
            step().with_context(|| format!("{HISTOGRAMS}: {line}"))?;
        if let Some(outcome) = outcomes.iter_mut().find(|outcome| outcome.name == name) {
            let key = (stage.to_owned(), variant.to_owned());
            let all = outcome.histograms.entry(key);
            all.or_insert_with(crate::load::histogram)
                .saturating_record_n(value, count);
        }
    }
    Ok(outcomes)
}

/// host.txt: the host as it is now, then for each scenario when it ran and with which commands.
pub(super) fn host(directory: &Path, outcomes: &[Outcome], host: &str) -> Result<String> {
    let earlier = fs::read_to_string(directory.join("host.txt")).unwrap_or_default();
    let mut parts: BTreeMap<String, String> = BTreeMap::new();
    for part in earlier.split(PART).skip(1) {
        if let Some((name, content)) = part.split_once('\n') {
            parts.insert(name.to_owned(), content.trim_end().to_owned());
        }
    }
    let first: Vec<&str> = host.lines().take(2).collect();
    for outcome in outcomes {
        let mut content = first.join("\n");
        for (variant, lines) in &outcome.records {
            for line in lines.lines() {
                write!(content, "\n{variant}: {line}")?;
            }
        }
        parts.insert(outcome.name.clone(), content);
    }
    let mut text = if outcomes.is_empty() {
        earlier.split(PART).next().unwrap_or(host).to_owned()
    } else {
        host.to_owned()
    };
    for (name, content) in parts {
        write!(text, "{PART}{name}\n{content}\n")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_call_leaves_is_read_by_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let scenario = Scenario::read(&scenarios.join("smoke.toml")).unwrap();
        let mut latency = crate::load::histogram();
        latency.record_n(77, 5).unwrap();
        let sample = Sample {
            scenario: "smoke".into(),
            stage: "capacity".into(),
            variant: "nginx two hops, TLS".into(),
            latency: Some(latency),
            ..Sample::default()
        };
        let outcome = Outcome::new("smoke".into(), scenario, vec![sample].into());
        write(directory.path(), std::slice::from_ref(&outcome)).unwrap();
        let again = read(directory.path(), &scenarios).unwrap();
        assert_eq!(again[0].samples[0].row(), outcome.samples[0].row());
        assert_eq!(again[0].histograms, outcome.histograms);

        let told = host(
            directory.path(),
            &[outcome],
            "date: 1\ncommand: a\nkernel: k\n",
        )
        .unwrap();
        fs::write(directory.path().join("host.txt"), &told).unwrap();
        assert!(told.contains("== smoke\ndate: 1\ncommand: a"));
        assert_eq!(host(directory.path(), &[], "").unwrap(), told);
    }
}
