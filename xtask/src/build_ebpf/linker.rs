//! The tools that build for the kernel: the pinned compiler with its standard library's source,
//! and bpf-linker, which is installed into the target directory where it is missing.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::run;

/// The linker's version; its LLVM has to be the compiler's.
pub const BPF_LINKER: &str = "0.10.3";
const LLVM: &str = "rust-llvm-22";

/// Where the tools are.
pub struct Tools {
    /// The compiler's directory.
    pub sysroot: PathBuf,
    /// bpf-linker.
    pub linker: PathBuf,
    /// The compiler's own objcopy.
    pub objcopy: PathBuf,
}

/// Finds the tools, and installs what is missing.
pub fn tools() -> Result<Tools> {
    let pinned = super::stamp::pinned_rustc()?;
    let version = run::output(run::command("rustc", &["--version"]))?;
    ensure!(
        version.starts_with(&format!("rustc {pinned} ")),
        "{} is not the pinned compiler {pinned}; run this through rustup",
        version.trim()
    );
    let sysroot = run::output(run::command("rustc", &["--print", "sysroot"]))?;
    let sysroot = PathBuf::from(sysroot.trim());
    if !sysroot.join("lib/rustlib/src/rust/library/core").exists() {
        run::wait(run::command("rustup", &["component", "add", "rust-src"]))?;
    }
    let host = run::output(run::command("rustc", &["--print", "host-tuple"]))?;
    let objcopy = sysroot.join("lib/rustlib").join(host.trim());
    Ok(Tools {
        linker: bpf_linker()?,
        objcopy: objcopy.join("bin/rust-objcopy"),
        sysroot,
    })
}

fn bpf_linker() -> Result<PathBuf> {
    let home = run::target_dir().join("bpf-linker");
    let own = home.join("bin/bpf-linker");
    let named = PathBuf::from("bpf-linker");
    if let Some(linker) = [named, own.clone()].into_iter().find(|path| is_right(path)) {
        return Ok(linker);
    }
    let start = Instant::now();
    let build = home.join("build");
    let mut install = run::cargo(&["install", "bpf-linker", "--locked", "--version", BPF_LINKER]);
    install
        .args(["--no-default-features", "--features", LLVM, "--debug"])
        .env("CARGO_PROFILE_DEV_DEBUG", "none")
        .args(["--root", &home.to_string_lossy()])
        .env("CARGO_TARGET_DIR", &build);
    run::wait(install)?;
    // Only the program is wanted.
    let _ = std::fs::remove_dir_all(build);
    let seconds = start.elapsed().as_secs();
    println!(
        "    bpf-linker took {seconds} s; it stays in {}",
        home.display()
    );
    ensure!(is_right(&own), "{} is not {BPF_LINKER}", own.display());
    Ok(own)
}

fn is_right(linker: &Path) -> bool {
    let version = run::command(&linker.to_string_lossy(), &["--version"]).output();
    version.is_ok_and(|out| {
        let said = String::from_utf8_lossy(&out.stdout);
        said.split_whitespace().nth(1) == Some(BPF_LINKER)
    })
}
