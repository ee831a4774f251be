//! Figures of a sample, as targets name them.

use super::Outcome;
use crate::lab::Variant;
use crate::sample::{Sample, float};
use crate::scenario::Figure;

/// The value, where the sample has one. Others of the same round may be needed.
pub(super) fn of(figure: Figure, sample: &Sample, outcome: &Outcome) -> Option<f64> {
    let gib = sample.gib();
    let hub_seconds = float(sample.hub_ns) / 1e9;
    let value = match figure {
        Figure::CpuPerGib => sample.relay_seconds() / gib,
        Figure::GibPerCpuSecond => sample.gib_per_cpu_second(),
        Figure::GibPerHubSecond => gib / hub_seconds,
        Figure::CpuPerAnswer => sample.relay_seconds() * 1e6 / float(sample.answers),
        Figure::HubCpuPerAnswer => hub_seconds * 1e6 / float(sample.answers),
        Figure::AnswersPerCpuSecond => sample.answers_per_cpu_second(),
        Figure::Rate => sample.rate(),
        Figure::Goodput => gib / sample.seconds,
        Figure::P50 => float(sample.latency_us[0]),
        Figure::P99 => float(sample.latency_us[2]),
        Figure::P99Distance => {
            let direct = beside(sample, outcome, &sample.stage, Variant::Direct.name())?;
            // A microsecond is the resolution: nothing is nearer than that.
            (float(sample.latency_us[2]) - float(direct.latency_us[2])).max(1.0)
        }
        Figure::UserMemory => float(sample.user_kib()),
        Figure::UserMemoryPerPair => {
            let half = format!("{} half", sample.stage);
            let half = beside(sample, outcome, &half, &sample.variant)?;
            let pairs = sample.connections - half.connections;
            (float(sample.user_kib()) - float(half.user_kib())) / float(pairs as u64)
        }
    };
    value.is_finite().then_some(value)
}

/// What it is called in the summary, smaller or larger being better.
pub(super) fn name(figure: Figure) -> &'static str {
    match figure {
        Figure::CpuPerGib => "CPU s/GiB",
        Figure::GibPerCpuSecond => "GiB per CPU-second",
        Figure::GibPerHubSecond => "GiB per CPU-second of the hub",
        Figure::CpuPerAnswer => "CPU us for each",
        Figure::HubCpuPerAnswer => "CPU us of the hub for each",
        Figure::AnswersPerCpuSecond => "answers per CPU-second",
        Figure::Rate => "answers/s",
        Figure::Goodput => "GiB/s",
        Figure::P50 => "p50",
        Figure::P99 => "p99",
        Figure::P99Distance => "p99 distance to direct",
        Figure::UserMemory => "user memory",
        Figure::UserMemoryPerPair => "user KiB for each pair",
    }
}

/// Another sample of the same round.
pub(super) fn beside<'a>(
    sample: &Sample,
    outcome: &'a Outcome,
    stage: &str,
    variant: &str,
) -> Option<&'a Sample> {
    outcome.samples.iter().find(|other| {
        other.round == sample.round && other.stage == stage && other.variant == variant
    })
}
