//! The one list of distribution packages, and its installation on demand.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The list, one package a line, `#` starts a comment.
const LIST: &str = include_str!("../packages.txt");
/// Its presence makes dpkg's scripts start no daemon.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Names of every package that the tests and benchmarks need.
pub fn needed() -> impl Iterator<Item = &'static str> {
    LIST.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Those of [`needed`] that are not installed.
///
/// # Errors
/// When `dpkg-query` cannot be run: then this is no Debian and nothing can be installed.
pub fn missing() -> Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for package in needed() {
        let status = Command::new("dpkg-query")
            .args(["-W", "-f=${db:Status-Status}", package])
            .stderr(Stdio::null())
            .output()
            .context("running dpkg-query (the list is for Debian and its children)")?;
        if status.stdout != b"installed" {
            missing.push(package);
        }
    }
    Ok(missing)
}

/// Installs what is missing: `apt-get update` once, then one `apt-get install`. Does nothing, and
/// needs no root, when nothing is missing. Safe to call from several processes at once.
///
/// # Errors
/// Not root, no network, or an unknown package: the text names the packages.
pub fn ensure() -> Result<()> {
    let lock = File::create(std::env::temp_dir().join("culvert-packages.lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!("not installed: {list}. Run as root, or: apt-get install {list}");
    }
    let _quiet = NoDaemons::hold()?;
    apt(&["update", "-q"])?;
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install).with_context(|| format!("installing {list}"))
}

fn apt(arguments: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("running apt-get")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "apt-get {}: {}: {}",
            arguments[0],
            output.status,
            said.trim()
        );
    }
    Ok(())
}

/// Packages are wanted as programs: their own daemons would hold ports.
struct NoDaemons {
    ours: bool,
}

impl NoDaemons {
    fn hold() -> Result<NoDaemons> {
        if Path::new(POLICY).exists() {
            return Ok(NoDaemons { ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n")?;
        let status = Command::new("chmod").args(["755", POLICY]).status()?;
        if !status.success() {
            bail!("chmod {POLICY}: {status}");
        }
        Ok(NoDaemons { ours: true })
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_free_of_repeats() {
        let names: Vec<_> = needed().collect();
        assert!(names.len() > 5);
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
    }
}
