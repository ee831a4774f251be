//! TCP scenarios: in each round every contestant in fresh processes, all stages in them.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::moment::Moment;
use super::record;
use super::{LATE_MAX, NOISE_MAX, OTHER_MAX, Options, REPEATS_MAX, Taken, fill};
use crate::cpu::{calibrate, pin};
use crate::host::file_limit;
use crate::lab::{Given, Host, LOAD_CPU, Lab, RELAY_CPU, Running, SERVICE_PORT, Variant};
use crate::load::{Arrivals, Measured};
use crate::sample::{Sample, float};
use crate::scenario::{Layout, Load, Scenario, Stage, Tcp};
use crate::tcp::{Plan, Rig, Work, integrity};

/// How long a contestant may take until the first message comes back.
const PROOF_MAX: Duration = Duration::from_secs(15);
/// Seconds of the pilot that finds out what the slowest contestant can do.
const PILOT_SECONDS: f64 = 1.0;
/// Open files of the generator beside connections.
const FILES_SPARE: u64 = 200;

/// Somebody who is measured.
#[derive(Clone)]
enum Contestant {
    Known(Variant),
    Given(Given),
}

impl Contestant {
    fn name(&self) -> &str {
        match self {
            Contestant::Known(variant) => variant.name(),
            Contestant::Given(given) => &given.name,
        }
    }

    fn lacks(&self, lab: &Lab) -> Option<String> {
        match self {
            Contestant::Known(variant) => variant.lacks(lab),
            Contestant::Given(given) => given.lacks(lab),
        }
    }

    fn start(&self, lab: &Lab) -> Result<Running> {
        match self {
            Contestant::Known(variant) => variant.start(lab),
            Contestant::Given(given) => given.start(lab),
        }
    }

    fn forks(&self) -> bool {
        matches!(self, Contestant::Known(variant) if variant.forks())
    }

    fn is_direct(&self) -> bool {
        matches!(self, Contestant::Known(Variant::Direct))
    }

    fn takes_part(&self, stage: &Stage) -> bool {
        match self {
            _ if stage.only.is_empty() => true,
            Contestant::Known(variant) => stage.only.contains(variant),
            Contestant::Given(_) => false,
        }
    }
}

/// Carries a TCP scenario out.
///
/// # Errors
/// When the host cannot hold it. Contestants that do not start or lose bytes are reported in the
/// samples, as ones that do not count.
pub(super) fn run(
    lab: &Lab,
    name: &str,
    (scenario, tcp): (&Scenario, &Tcp),
    options: &Options,
    note: &mut (dyn FnMut(&str) + Send),
) -> Result<Taken> {
    enough_files(tcp)?;
    let listener = lab
        .at(Host::Site)
        .run(|| std::net::TcpListener::bind(("0.0.0.0", SERVICE_PORT)))?;
    lab.at(Host::Client).run(|| {
        pin(LOAD_CPU)?;
        let mut bench = Bench {
            lab,
            rig: Rig::new(listener)?,
            name,
            scenario,
            tcp,
            best_ns: f64::INFINITY,
            last_ns: None,
            slowest: HashMap::new(),
            absent: BTreeMap::new(),
            records: BTreeMap::new(),
            keep_noisy: options.keep_noisy,
            note,
        };
        bench.rounds(options.rounds.unwrap_or(scenario.rounds))
    })
}

/// Pairs need files on both ends: the harness says so at once and never shrinks a scenario.
fn enough_files(tcp: &Tcp) -> Result<()> {
    let all = |stage: &Stage| stage.connections + stage.bulk_beside + stage.stalled_beside;
    let most = tcp.stage.iter().map(all).max().unwrap_or(0) as u64;
    let (soft, hard) = file_limit();
    let needed = most * 2 + FILES_SPARE;
    ensure!(
        needed <= hard,
        "{most} connections need {needed} open files, {hard} are allowed"
    );
    if soft < hard {
        let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        limit.current = limit.maximum;
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?;
    }
    Ok(())
}

struct Bench<'a> {
    lab: &'a Lab,
    rig: Rig,
    name: &'a str,
    scenario: &'a Scenario,
    tcp: &'a Tcp,
    best_ns: f64,
    /// The calibration behind the last sample is the one before the next.
    last_ns: Option<f64>,
    /// Echoes a second of the slowest contestant, by bytes and connections.
    slowest: HashMap<(usize, usize), f64>,
    /// Who is not measured, and why.
    absent: BTreeMap<String, String>,
    /// Command lines.
    records: BTreeMap<String, String>,
    keep_noisy: bool,
    note: &'a mut (dyn FnMut(&str) + Send),
}

impl Bench<'_> {
    fn rounds(&mut self, rounds: usize) -> Result<Taken> {
        let known = self.tcp.variants.iter().copied().map(Contestant::Known);
        let given = self.tcp.given.iter().cloned().map(Contestant::Given);
        let contestants: Vec<Contestant> = known.chain(given).collect();
        for one in &contestants {
            let failed = match one.lacks(self.lab) {
                Some(why) => Err(anyhow::anyhow!(why)),
                None => self.admit(one),
            };
            if let Err(error) = failed {
                (self.note)(&format!("{:>28}: not measured: {error:#}", one.name()));
                self.absent
                    .insert(one.name().to_owned(), format!("{error:#}"));
            }
        }
        let mut samples: Vec<Sample> = self
            .absent
            .iter()
            .map(|(variant, why)| Sample {
                stage: "admission".to_owned(),
                variant: variant.clone(),
                dropped: format!("not measured: {why}"),
                ..self.blank()
            })
            .collect();
        for round in 0..rounds {
            let mut order = contestants.clone();
            if round % 2 == 1 {
                order.reverse();
            }
            order.retain(|one| !self.absent.contains_key(one.name()));
            for (place, one) in order.iter().enumerate() {
                let taken = self
                    .contestant(one)
                    .with_context(|| format!("{}, round {round}", one.name()))?;
                samples.extend(taken.into_iter().map(|sample| Sample {
                    round,
                    order: place,
                    ..sample
                }));
            }
        }
        Ok(Taken {
            samples,
            records: std::mem::take(&mut self.records),
        })
    }

    fn blank(&self) -> Sample {
        Sample {
            scenario: self.name.to_owned(),
            topology: self.scenario.topology.name(),
            layout: match self.tcp.layout {
                Layout::Hop => "hop",
                Layout::Tunnel => "tunnel",
            }
            .to_owned(),
            ..Sample::default()
        }
    }

    /// Once for each contestant: it delivers what it is given, and how fast it is at most.
    fn admit(&mut self, one: &Contestant) -> Result<()> {
        let running = self.start(one)?;
        let entry = self.entry(&running);
        integrity::check(entry, self.rig.listener(), &running.preface)
            .context("disqualified: it does not deliver what it is given")?;
        self.records
            .insert(one.name().to_owned(), record::of(self.lab, &running));
        if one.is_direct() {
            return Ok(());
        }
        let wanted = |stage: &Stage| match stage.load {
            Load::Requests { bytes, share, .. } if share > 0.0 => Some((bytes, stage.connections)),
            _ => None,
        };
        let pilots: Vec<_> = self.tcp.stage.iter().filter_map(wanted).collect();
        for (bytes, connections) in pilots {
            let stage = Stage {
                name: "pilot".to_owned(),
                load: Load::Echo(bytes),
                connections,
                seconds: PILOT_SECONDS,
                bulk_beside: 0,
                stalled_beside: 0,
                only: Vec::new(),
            };
            let plan = self.plan(&stage, entry, &running);
            let measured = self.rig.measure(&plan, &mut || Ok(()))?;
            let slowest = self
                .slowest
                .entry((bytes, connections))
                .or_insert(f64::INFINITY);
            *slowest = slowest.min(measured.rate());
        }
        Ok(())
    }

    /// Fresh processes, and proof that a message comes back through them.
    fn start(&mut self, one: &Contestant) -> Result<Running> {
        let running = one.start(self.lab)?;
        let entry = self.entry(&running);
        let start = Instant::now();
        loop {
            let proof = self.rig.gather(entry, &running.preface, 1);
            self.rig.clear()?;
            match proof {
                Ok(()) => return Ok(running),
                Err(error) if start.elapsed() > PROOF_MAX => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn entry(&self, running: &Running) -> std::net::SocketAddr {
        let direct = self.lab.service(Host::Client);
        running.entry.unwrap_or(direct)
    }

    fn contestant(&mut self, one: &Contestant) -> Result<Vec<Sample>> {
        let running = self.start(one)?;
        let mut samples = Vec::new();
        for stage in &self.tcp.stage {
            if !one.takes_part(stage) {
                continue;
            }
            for tried in 0..=REPEATS_MAX {
                let taken = match stage.load {
                    Load::Idle => self.idle(one, &running, stage)?,
                    _ => vec![self.stage(one, &running, stage)?],
                };
                let is_good = taken.iter().all(|sample| sample.dropped.is_empty());
                for sample in &taken {
                    (self.note)(&line(sample));
                }
                if is_good || tried == REPEATS_MAX || self.keep_noisy {
                    samples.extend(taken);
                    break;
                }
            }
        }
        Ok(samples)
    }

    fn plan(&self, stage: &Stage, entry: std::net::SocketAddr, running: &Running) -> Plan {
        let work = match stage.load {
            Load::Bulk(way) => Work::Bulk(way),
            Load::Echo(bytes) => Work::Messages {
                bytes,
                arrivals: Arrivals::Closed,
            },
            Load::Requests { bytes, rate, share } => {
                let slowest = self.slowest.get(&(bytes, stage.connections));
                let rate = slowest.map_or(rate, |slowest| share * slowest);
                Work::Messages {
                    bytes,
                    arrivals: Arrivals::Poisson(rate.max(1.0)),
                }
            }
            Load::Short(bytes) => Work::Short { bytes },
            Load::Burst(bytes) => Work::Burst { bytes },
            Load::Idle => Work::Bulk(crate::tcp::Way::Down),
        };
        let warm_up = match work {
            Work::Burst { .. } => Duration::ZERO,
            _ => Duration::from_secs_f64(self.tcp.warm_up_seconds),
        };
        Plan {
            entry,
            preface: running.preface.clone(),
            connections: stage.connections,
            work,
            warm_up,
            window: Duration::from_secs_f64(stage.seconds),
            bulk_beside: stage.bulk_beside,
            stalled_beside: stage.stalled_beside,
        }
    }

    fn stage(&mut self, one: &Contestant, running: &Running, stage: &Stage) -> Result<Sample> {
        let before = self.calibrated()?;
        let plan = self.plan(stage, self.entry(running), running);
        let mut moments = Vec::new();
        let delayer = self.lab.delayer();
        let measured = self.rig.measure(&plan, &mut || {
            if moments.is_empty() {
                delayer.map(crate::delay::Delayer::lateness);
            }
            moments.push(Moment::take(running)?);
            Ok(())
        })?;
        let [start, end] = &moments[..] else {
            anyhow::bail!("a window has two edges");
        };
        let mut sample = self.blank();
        end.since(start, one.forks(), &mut sample);
        self.last_ns = None;
        sample.calibration_ns = [before, self.calibrated()?];
        sample.stage.clone_from(&stage.name);
        sample.variant = one.name().to_owned();
        sample.connections = stage.connections;
        sample.size = match stage.load {
            Load::Bulk(_) | Load::Idle => 0,
            Load::Echo(bytes) | Load::Short(bytes) | Load::Burst(bytes) => bytes,
            Load::Requests { bytes, .. } => bytes,
        };
        if let Work::Messages { arrivals, .. } = plan.work {
            sample.asked_rate = super::asked_of(arrivals);
        }
        if let Some(delayer) = delayer {
            sample.path_late_p99_us = delayer.lateness().value_at_quantile(0.99);
        }
        sample.dropped = self.spoiled(&sample, &measured, end.at.duration_since(start.at));
        fill(&mut sample, measured);
        Ok(sample)
    }

    /// Memory at half of the pairs and at all.
    fn idle(&mut self, one: &Contestant, running: &Running, stage: &Stage) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for (pairs, name) in [
            (stage.connections / 2, format!("{} half", stage.name)),
            (stage.connections, stage.name.clone()),
        ] {
            self.rig
                .gather(self.entry(running), &running.preface, pairs)?;
            std::thread::sleep(Duration::from_secs(1));
            let start = Moment::take(running)?;
            std::thread::sleep(Duration::from_secs_f64(stage.seconds));
            let end = Moment::take(running)?;
            let mut sample = self.blank();
            end.since(&start, one.forks(), &mut sample);
            sample.stage = name;
            sample.variant = one.name().to_owned();
            sample.connections = pairs;
            sample.seconds = end.at.duration_since(start.at).as_secs_f64();
            samples.push(sample);
        }
        self.rig.clear()?;
        Ok(samples)
    }

    fn calibrated(&mut self) -> Result<f64> {
        let taken = match self.last_ns.take() {
            Some(taken) => taken,
            None => calibrate(&[RELAY_CPU, LOAD_CPU])?,
        };
        self.best_ns = self.best_ns.min(taken);
        self.last_ns = Some(taken);
        Ok(taken)
    }

    /// Why a sample does not count.
    fn spoiled(&self, sample: &Sample, measured: &Measured, wall: Duration) -> String {
        let other = float(sample.other_ns) / 1e9 / wall.as_secs_f64();
        if measured.errors > 0 {
            let first = measured.first_error.as_deref().unwrap_or("");
            format!("{} errors, the first: {first}", measured.errors)
        } else if sample.noise_ns() > self.best_ns * NOISE_MAX {
            let (seen, best) = (sample.noise_ns(), self.best_ns);
            format!("noise: getppid {seen:.0} ns, best {best:.0} ns")
        } else if other > OTHER_MAX {
            format!("others used {:.0} % of a CPU", other * 100.0)
        } else if sample.asked_rate > 0.0 && measured.late_share() > LATE_MAX {
            let late = measured.late_share() * 100.0;
            format!("generator late in {late:.1} % of requests")
        } else {
            String::new()
        }
    }
}

fn line(sample: &Sample) -> String {
    let figures = if sample.answers > 0 {
        let [p50, _, p99, _, _] = sample.latency_us;
        let each = sample.relay_seconds() * 1e6 / float(sample.answers);
        format!(
            "{:>9.0}/s {each:>8.2} us CPU, p50 {p50} p99 {p99} us",
            sample.rate()
        )
    } else if sample.bytes > 0 {
        let each = sample.relay_seconds() / sample.gib();
        let rate = sample.gib() * 8.59 / sample.seconds;
        format!("{each:.3} CPU s/GiB, {rate:.1} Gbit/s")
    } else {
        format!("user memory {} KiB", sample.user_kib())
    };
    let dropped = match sample.dropped.as_str() {
        "" => String::new(),
        why => format!("  DROPPED: {why}"),
    };
    format!(
        "{:>28} {:>16}: {figures}{dropped}",
        sample.variant, sample.stage
    )
}
