//! Installs what the tests use and this machine lacks. Everything comes from
//! the ordinary package clients, by name.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::run;

const NEXTEST: &str = "0.9.143";
const DENY: &str = "0.20.2";
/// The same version as the crate in Cargo.toml.
const GUNGRAUN: &str = "0.20.0";

/// Debian packages of the tests, a name a line.
const PACKAGES: &str = "perf/packages.txt";

/// What npm's lock file pins, and where it is installed within the target directory.
const NPM: (&str, &str) = ("cli/tests/e2e/peer-oidc", "npm/oidc");

/// Everything `cargo xtask test` needs.
pub fn for_tests() -> anyhow::Result<()> {
    tool("nextest", "cargo-nextest", NEXTEST)?;
    tool("deny", "cargo-deny", DENY)?;
    packages()?;
    npm()
}

/// What counting instructions needs beside the packages.
pub fn for_counts() -> anyhow::Result<()> {
    let listed = run::output(run::cargo(&["install", "--list"]))?;
    match listed.contains(&format!("gungraun-runner v{GUNGRAUN}:")) {
        true => Ok(()),
        false => install("gungraun-runner", GUNGRAUN),
    }
}

/// Whether a program of this name is in the path.
pub fn has(program: &str) -> bool {
    let mut found = Command::new("sh");
    found.args(["-c", "command -v \"$0\"", program]);
    found
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn tool(verb: &str, package: &str, version: &str) -> anyhow::Result<()> {
    let have = run::cargo(&[verb, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if have {
        return Ok(());
    }
    install(package, version)
}

/// Unoptimised: what is built for one use has to be built quickly.
fn install(package: &str, version: &str) -> anyhow::Result<()> {
    let mut install = run::cargo(&["install", package, "--locked", "--version", version]);
    install
        .arg("--debug")
        .env("CARGO_PROFILE_DEV_DEBUG", "none");
    // Built outside the checkout's target directory: other features, other profile.
    install.env_remove("CARGO_TARGET_DIR");
    run::wait(install)
}

/// Installs the Debian packages that are missing. Without root it says what is
/// missing; the tests that need it then say so too.
pub fn packages() -> anyhow::Result<()> {
    let list = std::fs::read_to_string(run::root().join(PACKAGES))?;
    let wanted = list
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'));
    let missing: Vec<&str> = wanted.filter(|name| !installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() || !rustix::process::geteuid().is_root() {
        eprintln!(
            "missing packages: {}; install them to run every test",
            missing.join(" ")
        );
        return Ok(());
    }
    run::wait(run::command("apt-get", &["update", "-qq"]))?;
    let mut args = vec!["install", "-qq", "-y", "--no-install-recommends"];
    args.extend(&missing);
    let mut install = run::command("apt-get", &args);
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1")
        .stdout(Stdio::null());
    run::wait(install)
}

/// Installs the OpenID provider of the end-to-end tests, unless this lock file's is there.
/// Without npm it says so; the tests that need it then say so too.
fn npm() -> anyhow::Result<()> {
    let (from, to) = (run::root().join(NPM.0), run::target_dir().join(NPM.1));
    let lock = std::fs::read(from.join("package-lock.json"))?;
    let stamp = to.join("installed.json");
    if std::fs::read(&stamp).is_ok_and(|installed| installed == lock) {
        return Ok(());
    }
    if !has("npm") {
        eprintln!("npm is missing; install it to run every test");
        return Ok(());
    }
    std::fs::create_dir_all(&to)?;
    for name in ["package.json", "package-lock.json"] {
        std::fs::copy(from.join(name), to.join(name))?;
    }
    // Nothing of what is installed runs while it is installed.
    let mut ci = run::command(
        "npm",
        &["ci", "--ignore-scripts", "--no-audit", "--no-fund"],
    );
    ci.current_dir(&to);
    run::wait(ci)?;
    Ok(std::fs::write(stamp, lock)?)
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|out| out.stdout == b"installed")
}
