//! `culvert follow`: a child of quickstart that does not outlive it, however it ends.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::error::CliError;

/// Becomes `program`; returns only the reason why it could not.
pub fn run(parent: u32, program: &[OsString]) -> CliError {
    let failed = |why: &dyn std::fmt::Display| {
        let what = "a process cannot be started";
        CliError::new("no_start", what, why, "cli", "start quickstart again")
    };
    // The order of a signal outlives exec; given too late, the parent is another one already.
    if let Err(why) = set_parent_process_death_signal(Some(Signal::TERM)) {
        return failed(&why);
    }
    let now = getppid().map(Pid::as_raw_nonzero);
    if !now.is_some_and(|now| u32::try_from(now.get()) == Ok(parent)) {
        return failed(&"quickstart has ended");
    }
    let Some((name, arguments)) = program.split_first() else {
        return failed(&"no program");
    };
    failed(&Command::new(name).args(arguments).exec())
}
