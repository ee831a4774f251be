//! `cargo xtask tidy`: the structure of the code against its rules.

mod arrows;
mod documents;
mod files;

use anyhow::{Result, bail};

use crate::codegen;

/// Runs all checks and lists every breach.
pub fn run() -> Result<()> {
    let mut breaches = arrows::check()?;
    breaches.extend(files::check()?);
    breaches.extend(documents::check()?);
    if !codegen::is_current()? {
        breaches.push("lib/rpc/src/generated differs from its .proto: cargo xtask codegen".into());
    }
    if breaches.is_empty() {
        println!("==> tidy");
        return Ok(());
    }
    for breach in &breaches {
        eprintln!("tidy: {breach}");
    }
    bail!("tidy found {} breaches", breaches.len())
}
