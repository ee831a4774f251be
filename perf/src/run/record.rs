//! What was started: command lines and the configurations that they name.

use std::fmt::Write as _;
use std::fs;

use crate::lab::{Lab, Running};

/// Endings of configurations; keys, tokens and logs end otherwise.
const CONFIGURATIONS: [&str; 4] = [".cfg", ".conf", ".toml", "sshd_config"];
/// Lines that hold a throw-away secret.
const SECRET: &str = "private_key";

/// Of all processes, with places of this machine by name.
pub(super) fn of(lab: &Lab, running: &Running) -> String {
    let pids = [running.hub_pids(), running.agent_pids()].concat();
    let mut text = String::new();
    let mut seen = Vec::new();
    for pid in pids {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .filter(|word| !word.is_empty())
            .collect();
        let _ = writeln!(text, "{}", words.join(" "));
        for word in words {
            let known = CONFIGURATIONS.iter().any(|ending| word.ends_with(ending));
            if !known || seen.contains(&word) {
                continue;
            }
            let content = fs::read_to_string(&word).unwrap_or_default();
            for line in content.lines().map(str::trim_end) {
                if !line.trim().is_empty() && !line.contains(SECRET) {
                    let _ = writeln!(text, "    {line}");
                }
            }
            seen.push(word);
        }
    }
    lab.without_places(&text)
}
