//! `cargo xtask test`: everything CI holds, in the order that fails fastest.

use anyhow::{Result, ensure};

use crate::{build_ebpf, docs, fuzz, instructions, quickstart, run, setup, tidy};

/// The slice of `cargo xtask soak` that each fuzz target gets.
const FUZZ_SECONDS: u32 = 5;

/// The build that is nothing but a relay: most it may have, stripped (contract B-02).
const RELAY_BYTES_MAX: u64 = 6 << 20;
/// The test that its binary has to pass.
const RELAY_TEST: &str = "test(a_pair_meets_through_the_program_and_a_signal_ends_it)";

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
    relay_alone()?;
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
    quickstart::check()
}

/// Builds the relay without the hub, looks at its size and lets a pair meet at it.
fn relay_alone() -> Result<()> {
    let mut build = run::cargo(&["build", "--locked", "--profile", "relay"]);
    build.args(["--package", "culvert-dataplane", "--no-default-features"]);
    build.args(["--features", "relay"]);
    run::wait(build)?;
    let relay = run::target_dir().join("relay/culvert-dataplane");
    let bytes = std::fs::metadata(&relay)?.len();
    println!("a relay alone: {bytes} bytes, at most {RELAY_BYTES_MAX}");
    ensure!(
        bytes <= RELAY_BYTES_MAX,
        "the relay alone has {bytes} bytes, more than {RELAY_BYTES_MAX}: see what it pulls in, by cargo tree with the same flags"
    );
    refuses_drag(&relay)?;
    // The same selection as the tests before: nothing is built again.
    let mut test = run::cargo(&["nextest", "run", "--locked", "--workspace"]);
    test.args(["-E", RELAY_TEST]);
    test.env("CULVERT_RELAY_BIN", relay);
    run::wait(test)
}

/// What tests put into the engine is in no build without debug assertions.
fn refuses_drag(relay: &std::path::Path) -> Result<()> {
    let mut asked = run::command(
        &relay.to_string_lossy(),
        &["relay", "--engine-drag-us", "1"],
    );
    let said = asked.output()?;
    let words = String::from_utf8_lossy(&said.stderr);
    ensure!(
        said.status.code() == Some(2) && words.contains("unexpected argument '--engine-drag-us'"),
        "a build for release knows --engine-drag-us: {}, {words}",
        said.status
    );
    Ok(())
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
    // What the README's first command builds: tests must not lend it a feature that it lacks.
    let mut product = run::cargo(&["check", "--locked", "--quiet"]);
    for package in run::PRODUCT {
        product.args(["--package", package]);
    }
    run::wait(product)?;
    // A relay alone leaves the hub out: what is only used there must not be missed.
    let mut alone = run::cargo(&["check", "--locked", "--quiet"]);
    alone.args(["--package", "culvert-dataplane", "--no-default-features"]);
    alone.args(["--features", "relay"]);
    run::wait(alone)
}
