//! Removing what a killed run left behind, by the names and ids that it made itself.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};

use super::namespace::ip;

/// Ends the processes in, and removes, every `cv-<pid>-...` namespace whose pid lives no more.
pub(super) fn abandoned() -> Result<()> {
    for line in ip(&["netns", "list"])?.lines() {
        let Some(name) = line.split_whitespace().next() else {
            continue;
        };
        let Some(owner) = name
            .strip_prefix("cv-")
            .and_then(|rest| rest.split('-').next())
        else {
            continue;
        };
        if owner.parse::<u32>().is_err() || Path::new("/proc").join(owner).exists() {
            continue;
        }
        end_processes(name);
        // Another test may be sweeping the same name: gone is gone.
        let _ = ip(&["netns", "del", name]);
    }
    Ok(())
}

/// Ends every process whose network is `namespace`, except this one (its threads may be inside).
pub(super) fn end_processes(namespace: &str) {
    for _ in 0..50 {
        let inside = ip(&["netns", "pids", namespace]).unwrap_or_default();
        let mut others = 0;
        for pid in inside
            .lines()
            .filter_map(|line| line.trim().parse::<u32>().ok())
        {
            if pid == std::process::id() {
                continue;
            }
            others += 1;
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        if others == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
