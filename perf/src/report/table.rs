//! One table for each scenario: medians of the rounds that count.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Outcome, good, groups};
use crate::sample::{Sample, float};
use crate::scenario::Kind;
use crate::statistics::median;

/// Above this share of what the generator does alone, a rate says more of it than of the relay.
const BOUND_SHARE: f64 = 0.9;

fn tcp(text: &mut String, outcome: &Outcome) -> Result<()> {
    writeln!(
        text,
        "Medians over the rounds that count; all rounds, marked `~`, where none does. Topology: {}.\n\n\
         | stage | variant | Gbit/s | CPU s/GiB | answers/s | CPU us each | p50 us | p99 us | p99.9 us | \
         user KiB | rounds |\n|---|---|---|---|---|---|---|---|---|---|---|",
        outcome.scenario.topology.name()
    )?;
    let mut stages = groups(&outcome.samples);
    stages.retain(|(stage, _)| stage != "admission");
    stages.sort_by_key(|(stage, _)| {
        let first = |sample: &Sample| sample.stage == *stage;
        outcome.samples.iter().position(first)
    });
    for (stage, variant) in stages {
        let mut rows = good(&outcome.samples, &stage, &variant);
        let counted = rows.len();
        if rows.is_empty() {
            let same = |sample: &&Sample| sample.stage == stage && sample.variant == variant;
            rows = outcome.samples.iter().filter(same).collect();
        }
        let of = |value: &dyn Fn(&Sample) -> f64| {
            median(&rows.iter().map(|sample| value(sample)).collect::<Vec<_>>())
        };
        let messages = rows.iter().any(|sample| sample.answers > 0);
        let bulk = !messages && rows.iter().any(|sample| sample.bytes > 0);
        let shown = |is: bool, places: usize, value: f64| match is {
            true => format!("{value:.places$}"),
            false => "-".to_owned(),
        };
        let rate = if bulk {
            of(&goodput)
        } else {
            of(&Sample::rate)
        };
        let alone = direct_rate(outcome, &stage, bulk);
        let bound = variant != "direct" && alone.is_some_and(|alone| rate > BOUND_SHARE * alone);
        writeln!(
            text,
            "| {stage} | {variant}{} | {} | {} | {} | {} | {} | {} | {} | {:.0} | {}{} |",
            if bound { " (generator-bound)" } else { "" },
            shown(bulk, 1, rate * 8.59),
            shown(bulk, 3, of(&|sample| 1.0 / sample.gib_per_cpu_second())),
            shown(messages, 0, rate),
            shown(
                messages,
                2,
                of(&|sample| 1e6 / sample.answers_per_cpu_second())
            ),
            shown(messages, 0, of(&|sample| float(sample.latency_us[0]))),
            shown(messages, 0, of(&|sample| float(sample.latency_us[2]))),
            shown(messages, 0, of(&|sample| float(sample.latency_us[3]))),
            of(&|sample| float(sample.user_kib())),
            if counted == 0 { "~" } else { "" },
            if counted == 0 { rows.len() } else { counted },
        )?;
    }
    Ok(())
}

fn goodput(sample: &Sample) -> f64 {
    sample.gib() / sample.seconds
}

/// What the generator does alone in a closed loop.
fn direct_rate(outcome: &Outcome, stage: &str, bulk: bool) -> Option<f64> {
    let rates: Vec<f64> = outcome
        .samples
        .iter()
        .filter(|sample| sample.stage == stage && sample.variant == "direct")
        .filter(|sample| sample.asked_rate == 0.0)
        .map(|sample| if bulk { goodput(sample) } else { sample.rate() })
        .collect();
    (!rates.is_empty()).then(|| median(&rates))
}

pub(super) fn of(text: &mut String, outcome: &Outcome) -> Result<()> {
    match outcome.scenario.kind {
        Kind::IdleAgents { .. } => return idle_agents(text, outcome),
        Kind::Tcp(_) => return tcp(text, outcome),
        Kind::Requests { .. } | Kind::Bulk { .. } => {}
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

fn idle_agents(text: &mut String, outcome: &Outcome) -> Result<()> {
    writeln!(
        text,
        "| agents | hub resident KiB | hub proportional KiB | slab of all ends KiB | hub CPU % |\n\
         |---|---|---|---|---|"
    )?;
    for sample in &outcome.samples {
        let cpu = float(sample.hub_ns) / 1e7 / sample.seconds;
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
