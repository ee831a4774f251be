//! Aims of performance.md set beside what was measured: the targets of TCP scenarios, H4's http
//! row and H8's idle agent.

use crate::lab::{Topology, Variant};
use crate::sample::{Sample, float};
use crate::scenario::{Kind, Target};
use crate::statistics::{Ratio, median};

use super::{Outcome, figure, good, groups};

/// Requests or GiB per CPU-second, the first by the second: must, moonshot.
const COMPARED: [(Variant, Variant, f64, f64); 3] = [
    (Variant::Culvert, Variant::Nginx, 1.0, 1.3),
    (Variant::CulvertTls, Variant::NginxTls, 1.0, 1.3),
    // io_uring may be the default only where it is not worse.
    (Variant::Culvert, Variant::CulvertEpoll, 0.97, 1.0),
];
/// Distance of p99 to direct, ours by the rival's: must, moonshot.
const DISTANCE: (f64, f64) = (1.0, 0.5);
/// User, slab and socket memory of an idle agent on the hub, KiB: must, moonshot.
const IDLE_KIB: (f64, f64) = (24.0, 12.0);
/// Share of a long path's line that goodput can reach.
const LINE_SHARE_MIN: f64 = 0.85;
/// Sockets of one agent on this host: swarm, nginx twice, hub. The hub's is one of them.
const SOCKETS_PER_AGENT: f64 = 4.0;

/// One aim and whether it was met.
pub(super) struct Finding {
    pub met: bool,
    pub text: String,
}

/// Everything that can be said of a scenario.
pub(super) fn of(outcome: &Outcome) -> Vec<Finding> {
    match &outcome.scenario.kind {
        Kind::IdleAgents { .. } => idle(outcome),
        Kind::Requests { .. } | Kind::Bulk { .. } => against_rivals(outcome),
        Kind::Tcp(_) => {
            let targets = outcome.scenario.target.iter();
            let mut findings: Vec<_> = targets.map(|target| aimed(outcome, target)).collect();
            findings.extend(line_filled(outcome));
            findings
        }
    }
}

/// A long path without losses says something only where `direct` fills it.
fn line_filled(outcome: &Outcome) -> Option<Finding> {
    let Topology::Wan(path) = outcome.scenario.topology else {
        return None;
    };
    let direct = outcome.samples.iter().filter(|sample| {
        let bulk = sample.answers == 0 && sample.bytes > 0;
        bulk && sample.variant == Variant::Direct.name()
    });
    let bits = |sample: &Sample| float(sample.bytes) * 8.0 / sample.seconds;
    let fastest = direct.map(bits).fold(0.0, f64::max);
    if fastest == 0.0 || path.loss_percent > 0.0 {
        return None;
    }
    let share = fastest / (path.rate_mbit * 1e6);
    Some(Finding {
        met: share >= LINE_SHARE_MIN,
        text: format!(
            "path ({}): direct fills {share:.2} of the line of {} Mbit/s (aim >= {LINE_SHARE_MIN})",
            outcome.name, path.rate_mbit
        ),
    })
}

/// Paired rounds of a target.
pub(super) struct Paired {
    /// Those in which both samples count.
    pub quiet: Vec<(f64, f64)>,
    /// All without errors: a busy host spoils both sides of a pair alike.
    pub every: Vec<(f64, f64)>,
}

impl Paired {
    pub fn of(outcome: &Outcome, target: &Target) -> Paired {
        let theirs = target.theirs.unwrap_or(target.ours);
        let against = target.against_stage.as_ref().unwrap_or(&target.stage);
        let (mut quiet, mut every) = (Vec::new(), Vec::new());
        for sample in &outcome.samples {
            if sample.stage != target.stage || sample.variant != target.ours.name() {
                continue;
            }
            let Some(ours) = figure::of(target.figure, sample, outcome) else {
                continue;
            };
            let mut pair = (ours, 1.0);
            let mut errors = sample.errors;
            let mut counts = sample.dropped.is_empty();
            if is_ratio(target) {
                let Some(other) = figure::beside(sample, outcome, against, theirs.name()) else {
                    continue;
                };
                let Some(figure) = figure::of(target.figure, other, outcome) else {
                    continue;
                };
                pair.1 = figure;
                errors += other.errors;
                counts &= other.dropped.is_empty();
            }
            if errors == 0 {
                every.push(pair);
            }
            if counts {
                quiet.push(pair);
            }
        }
        Paired { quiet, every }
    }

    /// The quiet rounds where there are any.
    pub fn judged(&self) -> &[(f64, f64)] {
        if self.quiet.is_empty() {
            &self.every
        } else {
            &self.quiet
        }
    }
}

pub(super) fn is_ratio(target: &Target) -> bool {
    target.theirs.is_some() || target.against_stage.is_some()
}

/// What is compared with what.
pub(super) fn words(target: &Target) -> String {
    let figure = figure::name(target.figure);
    let mut text = format!(
        "{}, {}: {figure}, {}",
        target.row,
        target.stage,
        target.ours.name()
    );
    if let Some(theirs) = target.theirs {
        text.push_str(&format!(" by {}", theirs.name()));
    }
    if let Some(stage) = &target.against_stage {
        text.push_str(&format!(" by \"{stage}\""));
    }
    text
}

/// One target: a ratio of paired rounds, or a figure of ours alone.
fn aimed(outcome: &Outcome, target: &Target) -> Finding {
    let pairs = Paired::of(outcome, target);
    let shown = |pairs: &[(f64, f64)]| match Ratio::of(pairs) {
        None => "no round counts".to_owned(),
        Some(ratio) if is_ratio(target) => ratio.to_string(),
        Some(ratio) => {
            let (low, high) = ratio.range;
            format!(
                "{:.2} [{low:.2}-{high:.2}], {} rounds",
                ratio.median, ratio.rounds
            )
        }
    };
    let mut text = format!(
        "{} ({}): {}",
        words(target),
        outcome.name,
        shown(&pairs.quiet)
    );
    if pairs.quiet.len() < pairs.every.len() {
        text.push_str(&format!("; noisy rounds too: {}", shown(&pairs.every)));
    }
    let judged = pairs.judged().iter();
    let value = median(&judged.map(|(ours, other)| ours / other).collect::<Vec<_>>());
    let (met, aim) = match (target.at_most, target.at_least) {
        (Some(most), _) => (value <= most, format!("<= {most}")),
        (None, Some(least)) => (value >= least, format!(">= {least}")),
        (None, None) => (true, "none".to_owned()),
    };
    text.push_str(&format!(" (aim {aim}"));
    if let Some(moonshot) = target.moonshot {
        text.push_str(&format!(", moonshot {moonshot}"));
    }
    text.push(')');
    Finding { met, text }
}

fn against_rivals(outcome: &Outcome) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (ours, rival, must, moonshot) in COMPARED {
        for (stage, variant) in groups(&outcome.samples) {
            if variant != ours.name() {
                continue;
            }
            let what = if stage == "bulk" { "GiB" } else { "requests" };
            let pairs = pairs(outcome, &stage, ours, rival, |sample, _| {
                if stage == "bulk" {
                    Some(sample.gib_per_cpu_second())
                } else {
                    Some(sample.answers_per_cpu_second())
                }
            });
            if let Some(ratio) = Ratio::of(&pairs) {
                findings.push(Finding {
                    met: ratio.median >= must,
                    text: format!(
                        "{stage}: {what} per CPU-second, {} by {}: {ratio} (aim >= {must}, moonshot \
                         {moonshot})",
                        ours.name(),
                        rival.name()
                    ),
                });
            }
            if stage.starts_with("rate") {
                findings.extend(distance(outcome, &stage, ours, rival));
            }
        }
    }
    findings
}

/// p99 minus direct's p99 in the same round.
fn distance(outcome: &Outcome, stage: &str, ours: Variant, rival: Variant) -> Option<Finding> {
    let pairs = pairs(outcome, stage, ours, rival, |sample, direct| {
        // A microsecond is the resolution: nothing is nearer than that.
        Some((float(sample.latency_us[2]) - float(direct?.latency_us[2])).max(1.0))
    });
    let ratio = Ratio::of(&pairs)?;
    Some(Finding {
        met: ratio.median <= DISTANCE.0,
        text: format!(
            "{stage}: p99 distance to direct, {} by {}: {ratio} (aim <= {}, moonshot {})",
            ours.name(),
            rival.name(),
            DISTANCE.0,
            DISTANCE.1
        ),
    })
}

/// A figure of ours and of the rival in each round in which both count and have it.
fn pairs(
    outcome: &Outcome,
    stage: &str,
    ours: Variant,
    rival: Variant,
    figure: impl Fn(&Sample, Option<&Sample>) -> Option<f64>,
) -> Vec<(f64, f64)> {
    let samples = &outcome.samples;
    let theirs = good(samples, stage, rival.name());
    let direct = good(samples, stage, Variant::Direct.name());
    good(samples, stage, ours.name())
        .into_iter()
        .filter_map(|our| {
            let same = |other: &&&Sample| other.round == our.round;
            let their = theirs.iter().find(same)?;
            let direct = direct.iter().find(same).copied();
            Some((figure(our, direct)?, figure(their, direct)?))
        })
        .collect()
}

fn idle(outcome: &Outcome) -> Vec<Finding> {
    let [_, half, all] = &outcome.samples[..] else {
        return Vec::new();
    };
    let agents = float((all.connections - half.connections) as u64);
    let each = |figure: fn(&Sample) -> u64| (float(figure(all)) - float(figure(half))) / agents;
    let (user, slab) = (
        each(|sample| sample.hub_pss_kib),
        each(|sample| sample.slab_kib),
    );
    let whole = user + slab / SOCKETS_PER_AGENT;
    vec![Finding {
        met: whole <= IDLE_KIB.0,
        text: format!(
            "idle TLS agent on the hub: {user:.1} KiB user memory + {:.1} KiB slab (a quarter of the \
             {slab:.1} KiB of its {SOCKETS_PER_AGENT} sockets on this host) = {whole:.1} KiB at {} agents \
             (aim <= {}, moonshot {})",
            slab / SOCKETS_PER_AGENT,
            all.connections,
            IDLE_KIB.0,
            IDLE_KIB.1
        ),
    }]
}
