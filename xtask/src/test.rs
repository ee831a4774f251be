//! `cargo xtask test`: everything CI holds, in the order that fails fastest.

use anyhow::Result;

use crate::{build_ebpf, docs, fuzz, instructions, run, setup, tidy};

/// The slice of `cargo xtask soak` that each fuzz target gets.
const FUZZ_SECONDS: u32 = 5;

/// Options of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Only formatting, lints, tidy and deny.
    #[arg(long)]
    lint: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    setup::for_tests()?;
    lint()?;
    if args.lint {
        return Ok(());
    }
    // One build: the binaries under test are those of the same feature set.
    run::wait(run::cargo(&[
        "build",
        "--locked",
        "--workspace",
        "--bins",
        "--tests",
    ]))?;
    docs::check()?;
    let mut tests = run::cargo(&["nextest", "run", "--locked", "--workspace"]);
    tests
        .arg("--no-fail-fast")
        .env("CULVERT_BIN_DIR", run::target_dir().join("debug"));
    if rustix::process::geteuid().is_root() {
        // As root every kernel feature is there: a skipped test is then a failure.
        tests.env("CULVERT_REQUIRE", "all");
    }
    run::wait(tests)?;
    run::wait(run::cargo(&[
        "test",
        "--locked",
        "--workspace",
        "--doc",
        "--quiet",
    ]))?;
    build_ebpf::run(&build_ebpf::Args { check: true })?;
    instructions::run()?;
    fuzz::run(&fuzz::Args {
        seconds: FUZZ_SECONDS,
        only: String::new(),
    })?;
    run::wait(run::cargo(&["xtask", "quickstart", "--check"]))
}

fn lint() -> Result<()> {
    run::wait(run::cargo(&["fmt", "--all", "--check"]))?;
    tidy::run()?;
    // Advisories need a database from outside: advisories-extra.toml holds ours.
    run::wait(run::cargo(&[
        "deny", "--locked", "check", "bans", "licenses", "sources",
    ]))?;
    let mut clippy = run::cargo(&["clippy", "--locked", "--workspace", "--all-targets"]);
    clippy.args(["--quiet", "--", "-D", "warnings"]);
    run::wait(clippy)?;
    // A relay alone leaves the hub out: what is only used there must not be missed.
    let mut alone = run::cargo(&["check", "--locked", "--quiet"]);
    alone.args(["--package", "culvert-dataplane", "--no-default-features"]);
    alone.args(["--features", "relay"]);
    run::wait(alone)
}
