//! `cargo xtask kernels`: the observer's programs on other kernels, emulated.
//!
//! Each kernel is a Debian package that `apt-get download linux-image-...-cloud-amd64` fetches.
//! The test binary boots with it as all there is, without disk or network.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use cargo_metadata::Message;

use crate::{run, setup};

/// Programs that a guest or its start needs, with Debian's names.
const NEEDS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("cpio", "cpio"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("setarch", "util-linux"),
];
/// Test binaries: package and target. The first makes a network of its own.
const TESTS: [(&str, &str); 2] = [("culvert-ebpf", "kernel"), ("culvert-observe", "observe")];
const APPLETS: [&str; 6] = ["sh", "mount", "mkdir", "uname", "insmod", "poweroff"];
/// What loses packets before 6.6.
const MODULES: [&str; 2] = ["sch_ingress", "cls_bpf"];
/// An emulated processor is never quiet enough for the time it asserts.
const SKIPPED: &str = "injected_time_is_what_is_measured";
const SECONDS_MAX: u32 = 600;

/// The first process of a guest.
const INIT: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /sys/fs/cgroup
mount -t cgroup2 cgroup /sys/fs/cgroup
for module in /modules/*; do insmod $module; done
uname -r
export CULVERT_REQUIRE=all RUST_BACKTRACE=0
/tests/kernel --test-threads=1 --skip SKIPPED 2>&1
echo kernel ended with $?
ip link set lo up
ulimit -l unlimited
/tests/observe --test-threads=1 2>&1
echo observe ended with $?
poweroff -f
";

/// Options of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Debian packages of kernels, as files.
    #[arg(required = true)]
    packages: Vec<PathBuf>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let missing = NEEDS.iter().filter(|(program, _)| !setup::has(program));
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    ensure!(missing.is_empty(), "install {}", missing.join(" "));
    let tests = tests()?;
    let failed = args
        .packages
        .iter()
        .filter_map(|package| boot(package, &tests).err());
    let failed: Vec<String> = failed.map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Builds the test binaries.
fn tests() -> Result<Vec<(&'static str, PathBuf)>> {
    let mut build = run::cargo(&["test", "--locked", "--no-run", "--message-format", "json"]);
    for (package, target) in TESTS {
        build.args(["--package", package, "--test", target]);
    }
    let said = run::output(build)?;
    let built: Vec<_> = Message::parse_stream(said.as_bytes())
        .filter_map(|message| match message {
            Ok(Message::CompilerArtifact(artifact)) => {
                let test = TESTS.iter().find(|(_, it)| artifact.target.name == *it)?;
                Some((test.1, artifact.executable?.into()))
            }
            _ => None,
        })
        .collect();
    ensure!(
        built.len() == TESTS.len(),
        "cargo names {} test binaries",
        built.len()
    );
    Ok(built)
}

/// Boots one kernel and runs the tests in it.
fn boot(package: &Path, tests: &[(&str, PathBuf)]) -> Result<()> {
    let place = tempfile::tempdir()?;
    let kernel = place.path().join("kernel");
    let package = package.to_string_lossy();
    let to = kernel.to_string_lossy();
    run::wait(run::command("dpkg-deb", &["-x", &package, &to]))?;
    let image = found(&kernel, "vmlinuz-").context("the package holds no kernel")?;
    let root = place.path().join("root");
    furnish(&root, tests, &kernel)?;
    let initrd = place.path().join("initrd");
    pack(&root, &initrd)?;
    let mut guest = run::command("timeout", &[&SECONDS_MAX.to_string(), "qemu-system-x86_64"]);
    guest.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "1500",
    ]);
    guest.args([
        "-nographic",
        "-no-reboot",
        "-append",
        "console=ttyS0 quiet panic=1",
    ]);
    guest.arg("-kernel").arg(image).arg("-initrd").arg(initrd);
    let said = run::output(guest)?;
    let passed = said.lines().filter(|line| line.contains("... ok")).count();
    println!("    {package}: {passed} tests passed");
    if said.matches("ended with 0").count() == TESTS.len() && passed > 0 {
        return Ok(());
    }
    println!("{said}");
    bail!("{package}: not every test passed");
}

/// Everything that the guest has.
fn furnish(root: &Path, tests: &[(&str, PathBuf)], kernel: &Path) -> Result<()> {
    for directory in ["bin", "proc", "sys", "dev", "tmp", "modules", "tests"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(located("busybox")?, root.join("bin/busybox"))?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    let tools = ["ip", "setarch"].map(|tool| Ok((located(tool)?, format!("bin/{tool}"))));
    let tools: Vec<_> = tools.into_iter().collect::<Result<_>>()?;
    let tests = tests
        .iter()
        .map(|(name, it)| (it.clone(), format!("tests/{name}")));
    for (program, place) in tests.chain(tools) {
        fs::copy(&program, root.join(place))?;
        let mut libraries = Command::new("ldd");
        libraries.arg(&program);
        let said = run::output(libraries)?;
        let paths = said.split_whitespace().filter(|word| word.starts_with('/'));
        for path in paths {
            let copy = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(copy.parent().context("a library has a directory")?)?;
            fs::copy(path, copy)?;
        }
    }
    for module in MODULES {
        let name = format!("{module}.ko");
        let Some(file) = found(kernel, &name) else {
            continue;
        };
        let copy = root
            .join("modules")
            .join(file.file_name().unwrap_or_default());
        fs::copy(&file, &copy)?;
        if copy.extension().is_some_and(|ending| ending == "xz") {
            run::wait(run::command("xz", &["-d", &copy.to_string_lossy()]))?;
        }
    }
    let init = root.join("init");
    fs::write(&init, INIT.replace("SKIPPED", SKIPPED))?;
    fs::set_permissions(init, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// An archive of a directory, as the kernel unpacks it.
fn pack(root: &Path, initrd: &Path) -> Result<()> {
    let listed = run::output({
        let mut list = run::command("find", &["."]);
        list.current_dir(root);
        list
    })?;
    let mut archive = Command::new("cpio");
    archive
        .args(["-o", "-H", "newc", "--quiet"])
        .current_dir(root);
    archive
        .stdin(Stdio::piped())
        .stdout(fs::File::create(initrd)?);
    let mut archiving = archive.spawn().context("cannot start cpio")?;
    let mut names = archiving.stdin.take().context("cpio has an input")?;
    names.write_all(listed.as_bytes())?;
    drop(names);
    ensure!(archiving.wait()?.success(), "cpio failed");
    Ok(())
}

/// The first file below a directory whose name begins so.
fn found(below: &Path, name: &str) -> Option<PathBuf> {
    let mut places = vec![below.to_owned()];
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(place).ok()?.flatten() {
            let is_it = entry.file_name().to_string_lossy().starts_with(name);
            match entry.file_type().ok()? {
                kind if kind.is_dir() => places.push(entry.path()),
                kind if kind.is_file() && is_it => return Some(entry.path()),
                _ => {}
            }
        }
    }
    None
}

fn located(program: &str) -> Result<PathBuf> {
    let mut which = Command::new("sh");
    which.args(["-c", "command -v \"$0\"", program]);
    Ok(run::output(which)?.trim().into())
}
