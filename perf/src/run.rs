//! A run: rounds, in each round every variant in fresh processes, order reversed every other one.

mod moment;
mod record;
mod tcp;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cpu::{calibrate, host_ns, pin, spent_ns};
use crate::lab::{Host, LOAD_CPU, Lab, RELAY_CPU, Rivals, Running, SERVICE_PORT, Variant};
use crate::load::{Arrivals, Body, Engine, Measured, Plan};
use crate::sample::{Sample, float};
use crate::scenario::{Kind, Scenario};
use crate::testbed::memory_kib;

pub(crate) use moment::line_kib;

/// Warm-up of sockets and pools.
const WARM_UP: Duration = Duration::from_millis(500);
/// How often a noisy sample is taken again.
const REPEATS_MAX: usize = 3;
/// A calibration above the best of the run by this factor means noise.
const NOISE_MAX: f64 = 1.10;
/// Most of a CPU that anybody else may use.
const OTHER_MAX: f64 = 0.05;
/// Largest share of requests that the generator itself may send late.
const LATE_MAX: f64 = 0.01;

/// What a run needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The release build of the binaries.
    pub binaries: PathBuf,
    /// Programs that no distribution has.
    pub rivals: Rivals,
    /// In place of the scenario's own number.
    pub rounds: Option<usize>,
    /// Keep samples that a busy host spoiled (their rows say so all the same).
    pub keep_noisy: bool,
}

impl Options {
    /// Directories of this machine in a text, by name.
    pub fn without_places(&self, text: &str) -> String {
        without_places(text, &self.binaries, &self.rivals)
    }
}

/// Directories of this machine in a text, by name.
pub(crate) fn without_places(text: &str, binaries: &Path, rivals: &Rivals) -> String {
    let built = rivals.directory.iter().map(|path| (path, "RIVALS"));
    let given = rivals.given.values().map(|path| (path, "GIVEN"));
    let mut text = text.replace(&*binaries.to_string_lossy(), "BIN");
    for (path, name) in built.chain(given) {
        text = text.replace(&*path.to_string_lossy(), name);
    }
    text
}

/// What a scenario gave.
pub struct Taken {
    /// Every sample, those that do not count too.
    pub samples: Vec<Sample>,
    /// Command lines, by variant.
    pub records: BTreeMap<String, String>,
}

impl From<Vec<Sample>> for Taken {
    fn from(samples: Vec<Sample>) -> Taken {
        Taken {
            samples,
            records: BTreeMap::new(),
        }
    }
}

/// Carries a scenario out; calls `note` with a line for each sample, as they come.
///
/// # Errors
/// When an http rival does not start, or the host cannot hold the scenario.
pub fn run(
    name: &str,
    scenario: &Scenario,
    options: &Options,
    note: &mut (dyn FnMut(&str) + Send),
) -> Result<Taken> {
    let lab = Lab::new(&options.binaries, &options.rivals, scenario.topology)?;
    if let Kind::Tcp(kind) = &scenario.kind {
        return tcp::run(&lab, name, (scenario, kind), options, note);
    }
    if let Kind::IdleAgents {
        agents,
        settle_seconds,
    } = &scenario.kind
    {
        let samples = crate::swarm::measure(&lab, name, *agents, *settle_seconds, note)?;
        return Ok(samples.into());
    }
    let samples = lab.at(Host::Hub).run(|| -> Result<Vec<Sample>> {
        pin(LOAD_CPU)?;
        let mut bench = Bench {
            lab: &lab,
            engine: Engine::new(([127, 0, 0, 1], SERVICE_PORT).into())?,
            name,
            best_ns: f64::INFINITY,
            keep_noisy: options.keep_noisy,
            note,
        };
        bench.rounds(scenario, options.rounds.unwrap_or(scenario.rounds))
    })?;
    Ok(samples.into())
}

struct Bench<'a> {
    lab: &'a Lab,
    engine: Engine,
    name: &'a str,
    best_ns: f64,
    keep_noisy: bool,
    note: &'a mut (dyn FnMut(&str) + Send),
}

/// A part of a sample.
struct Stage {
    name: String,
    plan: Plan,
}

impl Bench<'_> {
    fn rounds(&mut self, scenario: &Scenario, rounds: usize) -> Result<Vec<Sample>> {
        let variants = match &scenario.kind {
            Kind::Requests { variants, .. } | Kind::Bulk { variants, .. } => variants.clone(),
            Kind::IdleAgents { .. } | Kind::Tcp(_) => Vec::new(),
        };
        let rates = self.pilot(scenario, &variants)?;
        let mut samples = Vec::new();
        for round in 0..rounds {
            let mut order = variants.clone();
            if round % 2 == 1 {
                order.reverse();
            }
            for (place, variant) in order.into_iter().enumerate() {
                let stages = stages(&scenario.kind, &rates);
                for mut sample in self.repeated(variant, &stages)? {
                    (sample.round, sample.order) = (round, place);
                    samples.push(sample);
                }
            }
        }
        Ok(samples)
    }

    /// The open-loop rates: shares of the slowest rival's capacity, from one sample of each.
    fn pilot(&mut self, scenario: &Scenario, variants: &[Variant]) -> Result<Vec<f64>> {
        let Kind::Requests { rates, .. } = &scenario.kind else {
            return Ok(Vec::new());
        };
        let mut slowest = f64::INFINITY;
        for variant in variants
            .iter()
            .copied()
            .filter(|variant| *variant != Variant::Direct)
        {
            let capacity = &stages(&scenario.kind, &[])[..1];
            let sample = self.sample(variant, capacity)?;
            slowest = slowest.min(sample[0].rate());
        }
        (self.note)(&format!(
            "slowest rival's capacity: {slowest:.0} requests/s"
        ));
        Ok(rates.iter().map(|share| share * slowest).collect())
    }

    /// A sample that the host's noise did not spoil, or the last of the tries.
    fn repeated(&mut self, variant: Variant, stages: &[Stage]) -> Result<Vec<Sample>> {
        for tried in 0..=REPEATS_MAX {
            let samples = self.sample(variant, stages)?;
            let noisy = samples.iter().find(|sample| !sample.dropped.is_empty());
            let Some(noisy) = noisy else {
                return Ok(samples);
            };
            (self.note)(&format!(
                "{}: {}: {}",
                variant.name(),
                noisy.stage,
                noisy.dropped
            ));
            if tried == REPEATS_MAX || self.keep_noisy {
                return Ok(samples);
            }
        }
        unreachable!("the last try returns")
    }

    fn sample(&mut self, variant: Variant, stages: &[Stage]) -> Result<Vec<Sample>> {
        let running = variant.start(self.lab)?;
        let warm = Plan {
            entry: running.entry.unwrap_or(self.engine.service()?),
            prefix: running.prefix.clone(),
            fields: running.fields.clone(),
            window: WARM_UP,
            arrivals: Arrivals::Closed,
            body: Body::Small,
            connections: stages.first().map_or(1, |stage| stage.plan.connections),
            answers_max: u64::MAX,
        };
        let warmed = self.engine.measure(&warm)?;
        ensure!(
            warmed.errors == 0 && warmed.answers > 0,
            "{}: {} errors while warming up: {:?}",
            variant.name(),
            warmed.errors,
            warmed.first_error
        );
        stages
            .iter()
            .map(|stage| self.stage(variant, &running, stage))
            .collect()
    }

    fn stage(&mut self, variant: Variant, running: &Running, stage: &Stage) -> Result<Sample> {
        let plan = Plan {
            entry: running.entry.unwrap_or(self.engine.service()?),
            prefix: running.prefix.clone(),
            fields: running.fields.clone(),
            ..stage.plan.clone()
        };
        let (hub, agent) = (running.hub_pids(), running.agent_pids());
        let me = [std::process::id()];
        let before = calibrate(&[RELAY_CPU, LOAD_CPU])?;
        let start = (
            spent_ns(&hub)?,
            spent_ns(&agent)?,
            spent_ns(&me)?,
            host_ns()?,
            Instant::now(),
        );
        let measured = self.engine.measure(&plan)?;
        let wall = start.4.elapsed();
        let mut sample = Sample {
            scenario: self.name.to_owned(),
            stage: stage.name.clone(),
            variant: variant.name().to_owned(),
            topology: "lo".to_owned(),
            layout: "tunnel".to_owned(),
            connections: plan.connections,
            asked_rate: asked_of(plan.arrivals),
            hub_ns: spent_ns(&hub)? - start.0,
            agent_ns: spent_ns(&agent)? - start.1,
            load_ns: spent_ns(&me)? - start.2,
            steal_ns: host_ns()?.1 - start.3.1,
            ..Sample::default()
        };
        let busy = host_ns()?.0 - start.3.0;
        sample.other_ns = busy.saturating_sub(sample.hub_ns + sample.agent_ns + sample.load_ns);
        sample.calibration_ns = [before, calibrate(&[RELAY_CPU, LOAD_CPU])?];
        sample.hub_rss_kib = hub
            .iter()
            .filter_map(|pid| memory_kib(*pid, "VmRSS").ok())
            .sum();
        self.best_ns = self
            .best_ns
            .min(sample.calibration_ns[0])
            .min(sample.calibration_ns[1]);
        sample.dropped = self.spoiled(&sample, &measured, wall);
        fill(&mut sample, measured);
        (self.note)(&line(&sample));
        Ok(sample)
    }

    /// Why a sample does not count.
    fn spoiled(&self, sample: &Sample, measured: &Measured, wall: Duration) -> String {
        let other = float(sample.other_ns) / 1e9 / wall.as_secs_f64();
        if measured.errors > 0 {
            format!("{} errors: {:?}", measured.errors, measured.first_error)
        } else if sample.noise_ns() > self.best_ns * NOISE_MAX {
            format!(
                "noise: getppid {:.0} ns, best {:.0} ns",
                sample.noise_ns(),
                self.best_ns
            )
        } else if other > OTHER_MAX {
            format!("others used {:.0} % of a CPU", other * 100.0)
        } else if sample.asked_rate > 0.0 && measured.late_share() > LATE_MAX {
            format!(
                "generator late in {:.1} % of requests",
                measured.late_share() * 100.0
            )
        } else {
            String::new()
        }
    }
}

fn asked_of(arrivals: Arrivals) -> f64 {
    match arrivals {
        Arrivals::Closed => 0.0,
        Arrivals::Constant(rate) | Arrivals::Poisson(rate) => rate,
    }
}

fn fill(sample: &mut Sample, measured: Measured) {
    let at = |share: f64| measured.latency.value_at_quantile(share);
    sample.latency_us = [
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        measured.latency.max(),
    ];
    sample.late_p99_us = measured.lateness.value_at_quantile(0.99);
    sample.late_share = if measured.lateness.is_empty() {
        0.0
    } else {
        measured.late_share()
    };
    (sample.seconds, sample.answers) = (measured.seconds, measured.answers);
    (sample.bytes, sample.errors) = (measured.bytes, measured.errors);
    sample.latency = Some(measured.latency);
}

fn line(sample: &Sample) -> String {
    format!(
        "{:>20} {:>10}: {:>8.0}/s, {:>8.0} per CPU-s, p50 {} p99 {} p99.9 {} us, {:.2} GiB/CPU-s{}{}",
        sample.variant,
        sample.stage,
        sample.rate(),
        sample.answers_per_cpu_second(),
        sample.latency_us[0],
        sample.latency_us[2],
        sample.latency_us[3],
        sample.gib_per_cpu_second(),
        if sample.dropped.is_empty() {
            ""
        } else {
            "  DROPPED: "
        },
        sample.dropped
    )
}

fn stages(kind: &Kind, rates: &[f64]) -> Vec<Stage> {
    let nobody = ([127, 0, 0, 1], 1).into();
    let plan = |connections, arrivals, body, seconds: f64, answers_max| Plan {
        entry: nobody,
        prefix: String::new(),
        fields: String::new(),
        connections,
        arrivals,
        body,
        window: Duration::from_secs_f64(seconds),
        answers_max,
    };
    match kind {
        Kind::Requests {
            connections,
            capacity_seconds,
            window_seconds,
            poisson,
            rates: shares,
            ..
        } => {
            let closed = plan(
                *connections,
                Arrivals::Closed,
                Body::Small,
                *capacity_seconds,
                u64::MAX,
            );
            let mut stages = vec![Stage {
                name: "capacity".to_owned(),
                plan: closed,
            }];
            for (rate, share) in rates.iter().zip(shares) {
                let arrivals = if *poisson {
                    Arrivals::Poisson(*rate)
                } else {
                    Arrivals::Constant(*rate)
                };
                let open = plan(
                    *connections,
                    arrivals,
                    Body::Small,
                    *window_seconds,
                    u64::MAX,
                );
                stages.push(Stage {
                    name: format!("rate {share:.2}"),
                    plan: open,
                });
            }
            stages
        }
        Kind::Bulk { bytes, bodies, .. } => {
            // The window only bounds a sample that hangs.
            let bulk = plan(1, Arrivals::Closed, Body::Big(*bytes), 120.0, *bodies);
            vec![Stage {
                name: "bulk".to_owned(),
                plan: bulk,
            }]
        }
        Kind::IdleAgents { .. } | Kind::Tcp(_) => Vec::new(),
    }
}

/// Where the binaries of a release build lie, and that they are there.
///
/// # Errors
/// Naming the one that is missing.
pub fn release_binaries(directory: &Path) -> Result<PathBuf> {
    for name in ["culvert-dataplane", "culvert-agent", "culvert-perf"] {
        let path = directory.join(name);
        ensure!(
            path.exists(),
            "{} is missing (cargo build --release)",
            path.display()
        );
    }
    directory
        .canonicalize()
        .context("the directory of the binaries")
}
