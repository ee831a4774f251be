//! `cargo xtask codegen`: the gRPC code of lib/rpc from its `.proto` file.
//!
//! The result is committed, so a build needs neither protoc nor this task;
//! tidy generates it again and compares.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::run;

const PROTO: &str = "lib/rpc/proto/state.proto";
const GENERATED: &str = "lib/rpc/src/generated";

/// Writes the generated code.
pub fn run() -> Result<()> {
    generate(&run::root().join(GENERATED))
}

/// `true` when the committed code is what the `.proto` file yields.
pub fn is_current() -> Result<bool> {
    let fresh = tempfile::tempdir()?;
    generate(fresh.path())?;
    let committed = run::root().join(GENERATED);
    for entry in std::fs::read_dir(fresh.path())? {
        let entry = entry?;
        let old = std::fs::read(committed.join(entry.file_name())).unwrap_or_default();
        if old != std::fs::read(entry.path())? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn generate(into: &Path) -> Result<()> {
    let proto = run::root().join(PROTO);
    let dir = proto
        .parent()
        .context("the .proto file stands in a directory")?;
    let set = protox::compile([&proto], [dir])?;
    std::fs::create_dir_all(into)?;
    tonic_prost_build::configure()
        .out_dir(into)
        .build_transport(false)
        .bytes(".")
        // It may carry a token: nothing may print it.
        .skip_debug(["culvert.v1.StateMessage"])
        .compile_fds(set)
        .context("cannot generate code")
}
