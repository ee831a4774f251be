//! `cargo xtask quickstart`: builds the product and runs `culvert quickstart`.

use anyhow::Result;

use crate::run;

/// Options of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// End after one request has gone through the tunnel.
    #[arg(long)]
    check: bool,
    /// A service of yours to reach through the tunnel, as an http or https URL.
    #[arg(long)]
    target: Option<String>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let mut build = run::cargo(&["build", "--locked"]);
    for package in run::PRODUCT {
        build.args(["--package", package]);
    }
    run::wait(build)?;
    start(args)
}

/// As [`run`] with `--check`, of what is built already.
pub fn check() -> Result<()> {
    start(&Args {
        check: true,
        target: None,
    })
}

fn start(args: &Args) -> Result<()> {
    let culvert = run::target_dir().join("debug/culvert");
    let mut quickstart = run::command(&culvert.to_string_lossy(), &["quickstart"]);
    // A fresh directory a run: what a new user sees, every time.
    let state = tempfile::tempdir()?;
    quickstart
        .arg("--state-dir")
        .arg(state.path().join("culvert"));
    if args.check {
        quickstart.arg("--check");
    }
    if let Some(target) = &args.target {
        quickstart.args(["--target", target]);
    }
    run::wait(quickstart)
}
