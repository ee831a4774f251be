//! What is measured: `perf/scenarios/*.toml`.

use std::path::Path;

use anyhow::{Context, Result};

use crate::lab::Variant;

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
    /// What is measured, and how.
    pub kind: Kind,
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
            let scenario = Scenario::read(&entry.unwrap().path()).unwrap();
            assert!(scenario.rounds >= 1);
            count += 1;
        }
        assert!(count >= 3);
    }
}
