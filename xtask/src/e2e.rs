//! `cargo xtask e2e`: the real binaries in network namespaces.

use anyhow::Result;

use crate::{run, setup};

/// Options of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name holds one of these words.
    filter: Vec<String>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    setup::for_tests()?;
    run::wait(run::cargo(&[
        "build",
        "--locked",
        "--workspace",
        "--bins",
        "--tests",
    ]))?;
    let mut tests = run::cargo(&["nextest", "run", "--locked", "--workspace", "-E"]);
    tests
        .arg("binary(e2e)")
        .args(&args.filter)
        .arg("--no-fail-fast");
    run::wait(tests)
}
