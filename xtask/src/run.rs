//! Runs commands from the root of the checkout, and says which.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};

/// Packages whose binaries make up the product.
pub const PRODUCT: [&str; 4] = [
    "culvert-control",
    "culvert-dataplane",
    "culvert-agent",
    "culvert-cli",
];

/// The root of the checkout.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("xtask stands below the root")
        .to_owned()
}

/// A cargo command in the root, with the toolchain that runs this task.
pub fn cargo(args: &[&str]) -> Command {
    command(
        &std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()),
        args,
    )
}

/// A command in the root.
pub fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    command
}

/// Runs to the end; an exit code other than 0 is an error that names the command.
pub fn wait(mut command: Command) -> anyhow::Result<()> {
    let said = shown(&command);
    println!("==> {said}");
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("cannot start `{said}`"))?;
    if !status.success() {
        bail!("`{said}` ended with {status}");
    }
    println!("    {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Runs to the end and returns standard output.
pub fn output(mut command: Command) -> anyhow::Result<String> {
    let said = shown(&command);
    let out = command
        .output()
        .with_context(|| format!("cannot start `{said}`"))?;
    if !out.status.success() {
        bail!(
            "`{said}` ended with {}:\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
