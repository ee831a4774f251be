//! `culvert pair validate`: certificates, stores and relays, and what to mend.

use serde_json::{Value, json};

use super::examine::{Check, examine};
use crate::args::pair::Examine;
use crate::args::{Format, Global};
use crate::error::{CliError, Result};
use crate::output::{self, Column};

const COLUMNS: &[Column] = &[("STATE", "state"), ("CHECK", "check"), ("SEEN", "seen")];

pub async fn run(global: &Global, args: &Examine) -> Result<()> {
    let report = examine(args).await?;
    let items: Vec<Value> = report.checks.iter().map(Check::json).collect();
    let bad: Vec<&Check> = report
        .checks
        .iter()
        .filter(|check| !check.is_good)
        .collect();
    let said = json!({"ok": bad.is_empty(), "items": items});
    match global.output {
        Format::Json => output::json(&said),
        Format::Table => output::show(Format::Table, &said, COLUMNS),
    }
    let Some(first) = bad.first() else {
        return Ok(());
    };
    let what = format!("{} of {} checks failed", bad.len(), report.checks.len());
    let seen = format!("{}: {}", first.what, first.seen);
    Err(CliError::new(
        "pair_invalid",
        &what,
        seen,
        "path",
        &first.fix,
    ))
}
