//! The smallest benchmark scenarios: they prove that the harness works and that bytes are exact.
//! No time is judged.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use culvert_perf::lab::Rivals;
use culvert_perf::report::{self, Outcome};
use culvert_perf::run::{Options, run};
use culvert_perf::scenario::Scenario;

use crate::hub::{binary, ready};

#[test]
fn the_smallest_scenario_runs_and_loses_nothing() -> Result<()> {
    if !ready(
        "the_smallest_scenario_runs_and_loses_nothing",
        &["nginx", "openssl", "taskset"],
    ) {
        return Ok(());
    }
    let (scenarios, scenario, options) = prepared("smoke")?;
    let taken = run("smoke", &scenario, &options, &mut |_| {})?;
    let samples = &taken.samples;
    let mut variants: Vec<&str> = samples
        .iter()
        .map(|sample| sample.variant.as_str())
        .collect();
    variants.dedup();
    assert_eq!(variants, ["direct", "nginx two hops", "culvert"]);
    for sample in samples {
        assert_eq!(
            sample.errors, 0,
            "{} {}: {}",
            sample.variant, sample.stage, sample.dropped
        );
        assert!(sample.answers > 0, "{} {}", sample.variant, sample.stage);
        assert_eq!(
            sample.bytes,
            sample.answers * 1024,
            "{} {}",
            sample.variant,
            sample.stage
        );
    }
    let directory = tempfile::tempdir()?;
    let outcome = Outcome::new("smoke".to_owned(), scenario, taken);
    report::write(directory.path(), vec![outcome], "a test", &scenarios)?;
    for file in ["raw.csv", "summary.md", "histograms.csv", "smoke-cpu.svg"] {
        assert!(directory.path().join(file).metadata()?.len() > 0, "{file}");
    }
    Ok(())
}

/// Every reference and rival of a hop starts, and delivers what it is given (checked before it
/// is measured).
#[test]
fn the_smallest_hop_loses_nothing() -> Result<()> {
    smallest("smoke_hop", &["haproxy", "nginx", "socat", "taskset"])
}

/// The same on MTU 1500 through hub and agent.
#[test]
fn the_smallest_tunnel_loses_nothing() -> Result<()> {
    smallest("smoke_tunnel", &["ethtool", "ssh", "taskset"])
}

/// The same on a path with delay and losses.
#[test]
fn the_smallest_long_path_loses_nothing() -> Result<()> {
    smallest("smoke_wan", &["chrt", "taskset"])
}

fn smallest(name: &'static str, programs: &'static [&'static str]) -> Result<()> {
    if !ready(name, programs) {
        return Ok(());
    }
    let (scenarios, scenario, options) = prepared(name)?;
    let taken = run(name, &scenario, &options, &mut |_| {})?;
    for sample in &taken.samples {
        let what = format!("{} {}: {}", sample.variant, sample.stage, sample.dropped);
        assert_ne!(sample.stage, "admission", "{what}");
        assert_eq!(sample.errors, 0, "{what}");
        let idle = sample.stage.starts_with("idle");
        assert!(sample.bytes > 0 || idle, "{what}");
    }
    let directory = tempfile::tempdir()?;
    let outcome = Outcome::new(name.to_owned(), scenario, taken);
    report::write(directory.path(), vec![outcome], "a test", &scenarios)?;
    assert!(directory.path().join("summary.md").metadata()?.len() > 0);
    Ok(())
}

/// The directory of the scenarios, one of them, and options for a test.
fn prepared(name: &str) -> Result<(PathBuf, Scenario, Options)> {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace")?;
    let scenarios = tree.join("perf/scenarios");
    let scenario = Scenario::read(&scenarios.join(format!("{name}.toml")))?;
    let binaries = binary("culvert-dataplane")?
        .parent()
        .context("a directory")?
        .to_owned();
    let options = Options {
        binaries,
        rivals: Rivals::default(),
        rounds: Some(1),
        keep_noisy: true,
    };
    Ok((scenarios, scenario, options))
}
