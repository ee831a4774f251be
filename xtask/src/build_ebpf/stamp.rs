//! What an object was built from and with, beside the object: a stale one fails without any
//! tool for BPF.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::linker::BPF_LINKER;
use crate::run;

/// File name of the stamp.
pub const NAME: &str = "culvert.bpf.o.stamp";

/// Everything that the objects are compiled from, the compiler and its libraries apart.
const SOURCES: [&str; 4] = [
    "ebpf/Cargo.toml",
    "ebpf/src",
    "lib/abi/Cargo.toml",
    "lib/abi/src",
];

/// The stamp of the sources as they are now.
pub fn of_sources() -> Result<String> {
    Ok(format!(
        "rustc {}\nbpf-linker {BPF_LINKER}\naya-ebpf {}\nsources {}\n",
        pinned_rustc()?,
        locked("aya-ebpf")?,
        sources()?,
    ))
}

/// Fails when the committed stamp is another one.
pub fn check(home: &Path, stamp: &str) -> Result<()> {
    let committed = fs::read_to_string(home.join(NAME)).context("reading the stamp")?;
    ensure!(
        committed == stamp,
        "{}/{NAME} says\n{committed}the sources yield\n{stamp}run: cargo xtask build-ebpf",
        home.display()
    );
    Ok(())
}

/// The checksum beside an object.
pub fn sum_of(object: &Path) -> PathBuf {
    let mut name = object.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

/// A line as sha256sum writes it.
pub fn sum(bytes: &[u8], object: &Path) -> Result<String> {
    let name = object.file_name().context("an object has a name")?;
    Ok(format!(
        "{}  {}\n",
        hex(&Sha256::digest(bytes)),
        name.display()
    ))
}

/// The compiler of rust-toolchain.toml.
pub fn pinned_rustc() -> Result<String> {
    #[derive(serde::Deserialize)]
    struct File {
        toolchain: Toolchain,
    }
    #[derive(serde::Deserialize)]
    struct Toolchain {
        channel: String,
    }
    let text = fs::read_to_string(run::root().join("rust-toolchain.toml"))?;
    Ok(toml::from_str::<File>(&text)?.toolchain.channel)
}

fn locked(package: &str) -> Result<String> {
    let lock: toml::Table = toml::from_str(&fs::read_to_string(run::root().join("Cargo.lock"))?)?;
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let found = packages.into_iter().flatten().find_map(|one| {
        let is_it = one.get("name")?.as_str()? == package;
        is_it
            .then(|| one.get("version")?.as_str().map(str::to_owned))
            .flatten()
    });
    found.with_context(|| format!("Cargo.lock names no {package}"))
}

/// Hash of every source file's path and bytes, in the order of the paths.
fn sources() -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        gather(&run::root().join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let bytes = fs::read(&file)?;
        let name = file.strip_prefix(run::root())?;
        hash.update(format!("{} {}\n", name.display(), bytes.len()));
        hash.update(bytes);
    }
    Ok(hex(&hash.finalize()))
}

fn gather(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    let listed = fs::read_dir(path).with_context(|| format!("listing {}", path.display()))?;
    for entry in listed {
        gather(&entry?.path(), files)?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> PathBuf {
        run::root().join(crate::build_ebpf::HOME)
    }

    #[test]
    fn the_committed_objects_are_of_these_sources() {
        check(&home(), &of_sources().unwrap()).unwrap();
    }

    #[test]
    fn the_committed_checksums_are_those_of_the_objects() {
        for object in &crate::build_ebpf::OBJECTS {
            let path = home().join(object.name);
            let expected = sum(&fs::read(&path).unwrap(), &path).unwrap();
            assert_eq!(fs::read_to_string(sum_of(&path)).unwrap(), expected);
        }
    }
}
