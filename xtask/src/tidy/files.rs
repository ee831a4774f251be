//! Sizes and names of source files, the fence around `unsafe`, and the one
//! place that reads the environment.

use std::path::Path;

use anyhow::Result;

use crate::run;

const LINES_MAX: usize = 500;
const LINES_MEDIAN_MAX: usize = 150;
const MAIN_LINES_MAX: usize = 40;
const NAMES_BANNED: [&str; 6] = ["mod", "utils", "common", "helpers", "misc", "manager"];
/// The only files that may hold `unsafe`.
const UNSAFE: [&str; 6] = [
    "lib/net/src/listen.rs",
    "perf/src/delay/tun.rs",
    "lib/engine/src/ring.rs",
    "lib/observe/src/mapped.rs",
    "lib/observe/src/sys.rs",
    "ebpf/src/",
];
/// Crates whose processes read flags and environment in `config.rs` alone.
const CONFIGURED: [&str; 3] = ["control/src/", "dataplane/src/", "agent/src/"];

/// Lists every breach.
pub fn check() -> Result<Vec<String>> {
    let listed = run::output(run::command("git", &["ls-files", "--", "*.rs"]))?;
    let mut breaches = Vec::new();
    let mut sizes = Vec::new();
    for path in listed.lines().filter(|path| !path.contains("/generated/")) {
        let Ok(text) = std::fs::read_to_string(run::root().join(path)) else {
            continue;
        };
        let lines = text
            .lines()
            .take_while(|line| *line != "#[cfg(test)]")
            .count();
        let test = ["/tests/", "/benches/", "/fuzz/"]
            .iter()
            .any(|part| path.contains(part));
        if !test {
            sizes.push(lines);
            if lines > LINES_MAX {
                breaches.push(format!("{path}: {lines} lines, at most {LINES_MAX}"));
            }
        }
        breaches.extend(one(path, &text, lines, test));
    }
    sizes.sort_unstable();
    let median = sizes.get(sizes.len() / 2).copied().unwrap_or_default();
    if median > LINES_MEDIAN_MAX {
        breaches.push(format!(
            "the median file has {median} lines, at most {LINES_MEDIAN_MAX}"
        ));
    }
    Ok(breaches)
}

fn one(path: &str, text: &str, lines: usize, test: bool) -> Vec<String> {
    let mut breaches = Vec::new();
    let stem = Path::new(path)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    if NAMES_BANNED.contains(&stem) {
        breaches.push(format!(
            "{path}: a file named {stem} says nothing about what it holds"
        ));
    }
    if stem == "main" && !test && lines > MAIN_LINES_MAX {
        breaches.push(format!("{path}: {lines} lines; main parses and calls run"));
    }
    let root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    if root && !test && !text.contains("(unsafe_code)]") {
        breaches.push(format!(
            "{path}: has no #![forbid(unsafe_code)] or #![deny(unsafe_code)]"
        ));
    }
    let fenced = UNSAFE.iter().any(|fence| path.starts_with(fence));
    // Written apart, so that this file does not find itself.
    let opened = ["allow", "expect"]
        .iter()
        .any(|word| text.contains(&format!("{word}(unsafe_code")));
    if opened && !fenced {
        breaches.push(format!("{path}: unsafe outside its fence"));
    }
    if path.contains("tokio_uring") || text.contains("tokio_uring::") {
        let home = path == "dataplane/src/runtime.rs" || test || path.starts_with("xtask/");
        if !home {
            breaches.push(format!(
                "{path}: only dataplane/src/runtime.rs names tokio_uring"
            ));
        }
    }
    let configured = CONFIGURED.iter().any(|dir| path.starts_with(dir));
    let reads = text.contains("env::var") || text.contains("env::args");
    if configured && reads && !path.contains("/config") {
        breaches.push(format!(
            "{path}: only config.rs reads flags and the environment"
        ));
    }
    breaches
}
