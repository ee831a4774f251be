//! `culvert store`: control itself copies, since only it knows its stores.

use std::process::Command;

use crate::args::Global;
use crate::args::store::Store;
use crate::error::{CliError, Result};
use crate::quickstart::find;

pub fn run(global: &Global, verb: Store) -> Result<()> {
    let Store::Migrate { from, to_file } = verb;
    let control = find("culvert-control")?;
    if global.dry_run {
        eprintln!(
            "dry run: {} --db-dsn-file {} migrate-store --from {from}",
            control.display(),
            to_file.display()
        );
        return Ok(());
    }
    let mut command = Command::new(control);
    command.arg("--db-dsn-file").arg(to_file);
    // Settings of a running control are not meant for a copy.
    command.env_clear().args(["--config", "/dev/null"]);
    command.args(["migrate-store", "--from"]).arg(from);
    let done = command.status().map_err(|why| {
        let fix = "put the four binaries into one directory, or on the PATH";
        CliError::new(
            "no_binary",
            "culvert-control does not start",
            why,
            "cli",
            fix,
        )
    })?;
    if done.success() {
        return Ok(());
    }
    let fix = "do what culvert-control says above; the SQLite store is as it was";
    Err(CliError::new(
        "store_not_copied",
        "the store was not copied",
        done,
        "control",
        fix,
    ))
}
