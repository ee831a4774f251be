//! `cargo xtask fuzz`: every fuzz target for a bounded time, with the pinned compiler.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::run;

/// Each is a workspace of its own, because its flags would rebuild everything else.
const WORKSPACES: [&str; 3] = ["lib/mux/fuzz", "lib/proto/fuzz", "lib/audit/fuzz"];
/// What cargo-fuzz sets: edge counters, compared values, and the address sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Zsanitizer=address \
    -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Built apart from the host, so that build scripts and macros are not instrumented.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// A target that holds more has found a leak.
const MEMORY_MIB_MAX: u32 = 1_024;

/// Options of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Time for each target, in seconds.
    #[arg(long, default_value_t = 60)]
    pub seconds: u32,
    /// Only the targets whose name contains this.
    #[arg(long, default_value = "")]
    pub only: String,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    WORKSPACES
        .iter()
        .try_for_each(|workspace| fuzz(Path::new(workspace), args))
}

fn fuzz(workspace: &Path, args: &Args) -> Result<()> {
    let home = run::root().join(workspace);
    let built = run::target_dir().join("fuzz");
    let mut build = run::cargo(&["build", "--locked", "--release", "--target", TARGET]);
    build
        .current_dir(&home)
        .env("CARGO_TARGET_DIR", &built)
        // The flags below are unstable ones.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", FLAGS);
    run::wait(build)?;
    let targets = targets(&home)?;
    ensure!(!targets.is_empty(), "{} has no target", home.display());
    for name in targets.iter().filter(|name| name.contains(&args.only)) {
        let program = built.join(TARGET).join("release").join(name);
        run::wait(session(&program, &home, name, args.seconds)?)?;
    }
    Ok(())
}

/// One target on its committed corpus and what it finds itself; an input that breaks it stays in
/// the target directory.
fn session(program: &Path, home: &Path, name: &str, seconds: u32) -> Result<Command> {
    let place = run::target_dir().join("fuzz/found").join(name);
    fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    let mut session = run::command(&program.to_string_lossy(), &[]);
    session
        .arg(&place)
        .args(Some(home.join("corpus").join(name)).filter(|seeds| seeds.exists()))
        .arg(format!("-artifact_prefix={}/broken-", place.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .args(["-timeout=10", "-print_final_stats=1", "-verbosity=0"]);
    Ok(session)
}

fn targets(home: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(home.join("fuzz_targets"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "rs") {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    names.sort();
    Ok(names)
}
