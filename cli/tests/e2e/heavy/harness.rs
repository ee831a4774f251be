//! The smallest benchmark scenario: proves that the harness works and that bytes are exact.
//! No time is judged.

use std::path::Path;

use anyhow::{Context, Result};
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
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace")?;
    let scenario = Scenario::read(&tree.join("perf/scenarios/smoke.toml"))?;
    let binaries = binary("culvert-dataplane")?
        .parent()
        .context("a directory")?
        .to_owned();
    let options = Options {
        binaries,
        rounds: Some(1),
        keep_noisy: true,
    };
    let samples = run("smoke", &scenario, &options, &mut |_| {})?;
    let mut variants: Vec<&str> = samples
        .iter()
        .map(|sample| sample.variant.as_str())
        .collect();
    variants.dedup();
    assert_eq!(variants, ["direct", "nginx two hops", "culvert"]);
    for sample in &samples {
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
    let outcome = Outcome {
        name: "smoke".to_owned(),
        scenario,
        samples,
    };
    report::write(directory.path(), &[outcome], "a test")?;
    for file in ["raw.csv", "summary.md", "histograms.csv", "smoke-cpu.svg"] {
        assert!(directory.path().join(file).metadata()?.len() > 0, "{file}");
    }
    Ok(())
}
