//! `cargo xtask perf`: the benchmark harness, on release builds.

use anyhow::Result;

use crate::{run, setup};

/// Options of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Arguments of the harness; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    setup::packages()?;
    let mut build = run::cargo(&[
        "build",
        "--locked",
        "--release",
        "--package",
        "culvert-perf",
    ]);
    for package in run::PRODUCT {
        build.args(["--package", package]);
    }
    run::wait(build)?;
    let bin = run::target_dir().join("release");
    let harness = bin.join("culvert-perf");
    let mut harness = run::command(&harness.to_string_lossy(), &[]);
    harness.args(&args.rest).env("CULVERT_BIN_DIR", &bin);
    run::wait(harness)
}
