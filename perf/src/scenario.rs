//! What is measured: `perf/scenarios/*.toml`.

use std::path::Path;

use anyhow::{Context, Result};

use crate::lab::{Given, Topology, Variant};
use crate::tcp::Way;

/// Fewest rounds that may say anything (performance.md 6.2).
pub const ROUNDS_MIN: usize = 5;

/// A scenario file. Unknown keys are errors.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// One sentence for the summary.
    pub title: String,
    /// Paired rounds.
    pub rounds: usize,
    /// How the parts are joined.
    #[serde(default)]
    pub topology: Topology,
    /// What is measured, and how.
    pub kind: Kind,
    /// What is aimed at.
    #[serde(default)]
    pub target: Vec<Target>,
}

/// The kinds of measurement.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Kind {
    /// 1 KiB requests: capacity in a closed loop, then latency in an open loop.
    Requests {
        /// What stands between generator and service.
        variants: Vec<Variant>,
        /// Keep-alive connections.
        connections: usize,
        /// Seconds of closed loop.
        capacity_seconds: f64,
        /// Seconds of open loop at each rate.
        window_seconds: f64,
        /// Shares of the slowest rival's capacity.
        rates: Vec<f64>,
        /// Exponential times between requests (seeded) in place of equal ones.
        poisson: bool,
    },
    /// One big body after the other on one connection.
    Bulk {
        /// What stands between generator and service.
        variants: Vec<Variant>,
        /// Bytes of a body.
        bytes: u64,
        /// Bodies in a sample.
        bodies: u64,
    },
    /// Memory of the hub for each idle agent over TLS.
    IdleAgents {
        /// Agents; memory is taken at half of them too.
        agents: usize,
        /// Seconds of silence before memory and CPU are taken.
        settle_seconds: f64,
    },
    /// TCP through one hop or through a tunnel, stage after stage in the same processes.
    Tcp(Tcp),
}

/// TCP through one hop or through a tunnel.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// Who shares a CPU with whom.
    pub layout: Layout,
    /// What stands between generator and service.
    pub variants: Vec<Variant>,
    /// Tunnels by command lines.
    #[serde(default)]
    pub given: Vec<Given>,
    /// Seconds of load before each window.
    pub warm_up_seconds: f64,
    /// What is done, in this order.
    pub stage: Vec<Stage>,
}

/// Who shares a CPU: figures of different layouts are never compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// The relay alone on CPU 0.
    Hop,
    /// Hub and agent on CPU 0.
    Tunnel,
}

/// One measurement of a TCP scenario.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// In files and plots.
    pub name: String,
    /// What the connections do.
    pub load: Load,
    /// Connections at once.
    pub connections: usize,
    /// Window; a burst may end earlier, idle pairs settle as long.
    pub seconds: f64,
    /// Connections that take bulk down beside it.
    #[serde(default)]
    pub bulk_beside: usize,
    /// Connections that ask for bulk down and never read it.
    #[serde(default)]
    pub stalled_beside: usize,
    /// These variants alone; all when empty.
    #[serde(default)]
    pub only: Vec<Variant>,
}

/// What the connections of a stage do.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Load {
    /// As many bytes as go through.
    Bulk(Way),
    /// Messages of so many bytes, each sent back, as fast as they come: for CPU per message.
    Echo(usize),
    /// Messages by a Poisson schedule.
    Requests {
        /// Of a message.
        bytes: usize,
        /// Messages a second, all connections together.
        #[serde(default)]
        rate: f64,
        /// In place of the rate: share of the slowest contestant's capacity in `Echo` of the
        /// same size and connections, which comes before it.
        #[serde(default)]
        share: f64,
    },
    /// Connect, one message of so many bytes, its echo, close.
    Short(usize),
    /// All connections at once, a message of so many bytes on each.
    Burst(usize),
    /// Connections that stay silent: memory at half of them and at all.
    Idle,
}

/// What is aimed at: a figure, or its ratio to another variant or stage in the same round.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Row of performance.md 5.
    pub row: String,
    /// Stage of `ours`.
    pub stage: String,
    /// What is compared.
    pub figure: Figure,
    /// Whose figure.
    pub ours: Variant,
    /// By whose; the same variant when absent.
    pub theirs: Option<Variant>,
    /// By the figure of which stage; the same stage when absent.
    pub against_stage: Option<String>,
    /// Largest good value.
    pub at_most: Option<f64>,
    /// Smallest good value.
    pub at_least: Option<f64>,
    /// The better value that is hoped for.
    pub moonshot: Option<f64>,
}

/// Figures of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// CPU seconds of the relay for each GiB.
    CpuPerGib,
    /// GiB for each CPU second of the relay.
    GibPerCpuSecond,
    /// The same with the CPU of the first hop alone.
    GibPerHubSecond,
    /// CPU microseconds for each answer or connection.
    CpuPerAnswer,
    /// The same of the first hop alone.
    HubCpuPerAnswer,
    /// Answers for each CPU second.
    AnswersPerCpuSecond,
    /// Answers a second.
    Rate,
    /// GiB a second.
    Goodput,
    /// Median latency, microseconds.
    P50,
    /// 99th percentile, microseconds.
    P99,
    /// 99th percentile minus direct's in the same round, microseconds.
    P99Distance,
    /// User memory of all hops, KiB.
    UserMemory,
    /// User memory of all hops for each pair between half of the pairs and all, KiB.
    UserMemoryPerPair,
}

impl Scenario {
    /// Reads one file.
    ///
    /// # Errors
    /// What is wrong with it, with line and key.
    pub fn read(path: &Path) -> Result<Scenario> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_in_the_tree_is_read() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut count = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let scenario = Scenario::read(&path).unwrap();
            assert!(scenario.rounds >= 1);
            for target in &scenario.target {
                let Kind::Tcp(tcp) = &scenario.kind else {
                    panic!(
                        "{}: targets of http kinds stand in the report",
                        path.display()
                    );
                };
                let stages = [Some(&target.stage), target.against_stage.as_ref()];
                for name in stages.into_iter().flatten() {
                    let known = tcp.stage.iter().any(|stage| stage.name == *name);
                    assert!(known, "{}: no stage {name}", path.display());
                }
                for variant in [Some(target.ours), target.theirs].into_iter().flatten() {
                    assert!(
                        tcp.variants.contains(&variant),
                        "{}: {variant:?}",
                        path.display()
                    );
                }
                assert!(target.at_most.is_some() != target.at_least.is_some());
            }
            count += 1;
        }
        assert!(count >= 10, "{count} scenarios");
    }
}
