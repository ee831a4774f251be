//! `cargo xtask build-ebpf`: the observer's programs, built for the kernel.
//!
//! The objects are committed, so a build needs neither the linker nor the standard library's
//! source; `--check` builds them again and compares.

mod compare;
mod linker;
mod stamp;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::run;
use compare::Equal;

const HOME: &str = "ebpf/prebuilt";
const TRIPLE: &str = "bpfel-unknown-none";

/// An object: its file's name, and the features it is built with.
struct Object {
    name: &'static str,
    features: &'static str,
}

const OBJECTS: [Object; 2] = [
    Object {
        name: "culvert.bpf.o",
        features: "",
    },
    // Only the tests load it.
    Object {
        name: "testprogs.bpf.o",
        features: "testprogs",
    },
];

/// Options of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Write nothing; fail when an object is not what its sources yield.
    #[arg(long)]
    pub check: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let tools = linker::tools()?;
    let home = run::root().join(HOME);
    for object in &OBJECTS {
        if args.check {
            lint(object, &tools)?;
        }
        let built = build(object, &tools)?;
        let committed = home.join(object.name);
        if args.check {
            check(&committed, &built)?;
        } else {
            write(&committed, &built)?;
        }
    }
    let stamp = stamp::of_sources()?;
    if args.check {
        return stamp::check(&home, &stamp);
    }
    fs::write(home.join(stamp::NAME), stamp).context("writing the stamp")
}

/// A cargo command for the kernel's side.
fn cargo(verb: &str, object: &Object, tools: &linker::Tools) -> Result<Command> {
    let mut cargo = run::cargo(&[verb, "--locked", "--quiet", "--package", "culvert-ebpf"]);
    cargo
        .args(["--profile", "bpf", "--target", TRIPLE])
        .args(["-Z", "build-std=core", "--features", object.features])
        .env("CARGO_TARGET_DIR", run::target_dir().join("ebpf"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags(tools)?.join("\x1f"))
        .env_remove("RUSTFLAGS")
        // build-std is unstable; the compiler is the pinned one.
        .env("RUSTC_BOOTSTRAP", "1");
    Ok(cargo)
}

/// What clippy sees on a host is an empty program.
fn lint(object: &Object, tools: &linker::Tools) -> Result<()> {
    let mut clippy = cargo("clippy", object, tools)?;
    clippy.args(["--", "-D", "warnings"]);
    run::wait(clippy)
}

/// Builds an object and takes away what only a debugger reads; types stay.
fn build(object: &Object, tools: &linker::Tools) -> Result<PathBuf> {
    run::wait(cargo("build", object, tools)?)?;
    let target = run::target_dir().join("ebpf");
    let linked = target.join(TRIPLE).join("bpf").join("culvert-ebpf");
    let stripped = target.join(object.name);
    let objcopy = tools.objcopy.to_string_lossy();
    let mut strip = run::command(&objcopy, &["--strip-debug"]);
    strip.arg(&linked).arg(&stripped);
    strip.env("LD_LIBRARY_PATH", tools.sysroot.join("lib"));
    run::wait(strip)?;
    Ok(stripped)
}

/// Paths of this machine are written as names, so that every machine builds the same bytes.
fn flags(tools: &linker::Tools) -> Result<Vec<String>> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let user_home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let cargo_home = cargo_home.or_else(user_home);
    let cargo_home = cargo_home.context("neither CARGO_HOME nor HOME is set")?;
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags = vec![
        format!("-Clinker={}", tools.linker.display()),
        "-Clink-arg=--btf".to_owned(),
        remap(&run::root(), "/culvert"),
        remap(&tools.sysroot, "/rustc"),
        remap(&cargo_home, "/cargo"),
    ];
    // The last that fits counts: which mirror the packages came from is nobody's business.
    for registry in fs::read_dir(cargo_home.join("registry/src"))? {
        flags.push(remap(&registry?.path(), "/cargo"));
    }
    Ok(flags)
}

fn write(committed: &Path, built: &Path) -> Result<()> {
    let object = fs::read(built)?;
    println!("    {}: {} bytes", committed.display(), object.len());
    fs::write(committed, &object)?;
    fs::write(stamp::sum_of(committed), stamp::sum(&object, committed)?)?;
    Ok(())
}

fn check(committed: &Path, built: &Path) -> Result<()> {
    let name = committed.file_name().unwrap_or_default().display();
    let how = compare::objects(&fs::read(committed)?, &fs::read(built)?)?;
    match how {
        Equal::Bytes => println!("    {name}: equal, byte for byte"),
        Equal::Instructions => {
            println!("    {name}: equal by disassembly; types or strings differ");
        }
        Equal::Not(ours, theirs) => {
            let place = tempfile::tempdir()?;
            let pages = [("committed", ours), ("built", theirs)];
            let mut diff = run::command("diff", &["-u"]);
            for (what, text) in pages {
                let page = place.path().join(what);
                fs::write(&page, text)?;
                diff.arg(page);
            }
            diff.status()?;
            bail!("{name} is not what its sources yield; run: cargo xtask build-ebpf");
        }
    }
    Ok(())
}
