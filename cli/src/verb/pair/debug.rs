//! `culvert pair debug`: what support needs, in a file without secrets.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::examine::{Check, examine};
use super::{now_unix_s, would};
use crate::args::pair::Debug;
use crate::args::{Format, Global};
use crate::error::{CliError, Result};
use crate::output;

pub async fn run(global: &Global, args: &Debug) -> Result<()> {
    let now = now_unix_s();
    let file = args.file.clone();
    let file = file.unwrap_or_else(|| PathBuf::from(format!("culvert-pair-debug-{now}.json")));
    if global.dry_run {
        would(&format!("write {}", file.display()));
        return Ok(());
    }
    let report = examine(&args.examine).await?;
    let checks: Vec<Value> = report.checks.iter().map(Check::json).collect();
    let bundle = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "protocols": ["culvert-relay/1", "culvert-pair/1", "culvert-pair-raw/1", "culvert-boot/1"],
        "system": std::env::consts::OS, "architecture": std::env::consts::ARCH,
        "at_unix_s": now, "checks": checks, "pairs": report.pairs,
    });
    let opened = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&file);
    let written = opened.and_then(|mut file| writeln!(file, "{bundle:#}"));
    written.map_err(|why| {
        let seen = format!("{}: {why}", file.display());
        let fix = "give --file a path that is not there yet";
        CliError::usage("the bundle cannot be written", seen, fix)
    })?;
    if global.output == Format::Json {
        output::json(&json!({"file": file.display().to_string()}));
    } else {
        eprintln!("names, addresses, times and hashes are in it, and no key, code or token:");
        println!("{}", file.display());
    }
    Ok(())
}
