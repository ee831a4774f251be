//! Aims of performance.md set beside what was measured: H4's http row and H8's idle agent.

use crate::lab::Variant;
use crate::sample::{Sample, float};
use crate::scenario::Kind;
use crate::statistics::Ratio;

use super::{Outcome, good, groups};

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
    }
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
