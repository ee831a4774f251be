//! The documents against the tree: sizes, links, and the tests they name.

use std::path::Path;

use anyhow::Result;

use crate::run;

const ARCHITECTURE_LINES_MAX: usize = 300;
const README_LINES_MAX: usize = 150;

/// Lists every breach.
pub fn check() -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    for (path, most) in [
        ("ARCHITECTURE.md", ARCHITECTURE_LINES_MAX),
        ("README.md", README_LINES_MAX),
    ] {
        let lines = std::fs::read_to_string(run::root().join(path))?
            .lines()
            .count();
        if lines > most {
            breaches.push(format!("{path}: {lines} lines, at most {most}"));
        }
    }
    let listed = run::output(run::command("git", &["ls-files", "--", "*.md"]))?;
    for path in listed.lines() {
        let Ok(text) = std::fs::read_to_string(run::root().join(path)) else {
            continue;
        };
        breaches.extend(links(path, &text));
    }
    breaches.extend(promises()?);
    Ok(breaches)
}

fn links(path: &str, text: &str) -> Vec<String> {
    let dir = Path::new(path).parent().unwrap_or(Path::new(""));
    // Every second piece between backquotes is code.
    let prose: Vec<&str> = text.split('`').step_by(2).collect();
    let prose = prose.join("`");
    let targets = prose
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', ' ']).next());
    let local = targets.filter(|to| !to.contains("://") && !to.starts_with(['#', '<']));
    local
        .filter(|to| {
            let file = to.split('#').next().unwrap_or_default();
            !run::root().join(dir).join(file).exists()
        })
        .map(|to| format!("{path}: the link to {to} leads nowhere"))
        .collect()
}

/// Every row of SPECIFICATION.md ends in the tests or benchmarks that hold it,
/// in backquotes, or says `[pending]`.
fn promises() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(run::root().join("SPECIFICATION.md"))?;
    let mut breaches = Vec::new();
    for row in text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| id"))
    {
        let held = row
            .trim_end_matches('|')
            .rsplit('|')
            .next()
            .unwrap_or_default();
        let id = row.split('|').nth(1).unwrap_or_default().trim();
        if held.contains("[pending]") {
            continue;
        }
        let names: Vec<&str> = held.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            breaches.push(format!(
                "SPECIFICATION.md {id}: names neither a test nor [pending]"
            ));
        }
        for name in names {
            if !exists(name)? {
                breaches.push(format!("SPECIFICATION.md {id}: nothing is called {name}"));
            }
        }
    }
    Ok(breaches)
}

/// A name is a path in the tree, or a function in a Rust file.
fn exists(name: &str) -> Result<bool> {
    if run::root().join(name).exists() {
        return Ok(true);
    }
    let function = name.rsplit("::").next().unwrap_or(name);
    let pattern = format!("fn {function}\\b");
    let found = run::command("git", &["grep", "-qE", &pattern, "--", "*.rs"]).status()?;
    Ok(found.success())
}
