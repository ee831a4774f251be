//! `cargo xtask perf`: the benchmark harness, on release builds.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{run, setup};

/// A rival that cargo builds: package, version, its program, options of `cargo install`.
struct Rival(
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

const RIVALS: [Rival; 2] = [
    // Without its lock file: the `time` in it does not compile any more. Without TLS, which
    // wants the headers of OpenSSL.
    Rival(
        "rathole",
        "0.5.0",
        "rathole",
        &["--no-default-features", "--features", "server,client,noise"],
    ),
    Rival("bore-cli", "0.6.0", "bore", &["--locked"]),
];

/// Options of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Build the rivals that no distribution has, once, into the target directory: rathole, bore.
    #[arg(long)]
    rivals: bool,
    /// Arguments of the harness; `-- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    setup::packages()?;
    let rivals = run::target_dir().join("rivals");
    if args.rivals {
        build_rivals(&rivals)?;
    }
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
    harness
        .args(&args.rest)
        .env("CULVERT_BIN_DIR", &bin)
        .env("CULVERT_RIVALS_DIR", rivals.join("bin"));
    run::wait(harness)
}

fn build_rivals(root: &Path) -> Result<()> {
    let build: PathBuf = root.join("build");
    for Rival(package, version, program, options) in &RIVALS {
        if root.join("bin").join(program).exists() {
            continue;
        }
        let mut install = run::cargo(&["install", package, "--version", version]);
        install
            .args(*options)
            .args(["--root", &root.to_string_lossy()])
            .env("CARGO_TARGET_DIR", &build);
        run::wait(install).with_context(|| format!("building the rival {package}"))?;
    }
    // Only the programs are wanted.
    let _ = std::fs::remove_dir_all(build);
    Ok(())
}
