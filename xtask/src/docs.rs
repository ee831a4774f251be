//! `cargo xtask docs`: the references in docs/ that the programs themselves print.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use culvert_proto::close::CloseReason;

use crate::run;

/// Programs whose references are written.
const PROGRAMS: [&str; 3] = ["culvert-control", "culvert-dataplane", "culvert-agent"];
/// Roles with a command line of their own.
const ROLES: [(&str, &str); 3] = [
    ("culvert-dataplane", RELAY),
    ("culvert-agent", "bridge"),
    ("culvert-agent", "broker"),
];
/// Counts other things than its program; the others count what their program does.
const RELAY: &str = "relay";
const MADE: &str = "Made by `cargo xtask docs` from the programs themselves; do not edit.";

/// Options of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Write nothing; fail with the difference when a page is not current.
    #[arg(long)]
    check: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    // As the tests build: another set of packages would be built with other features.
    let build = run::cargo(&["build", "--locked", "--workspace", "--bins", "--tests"]);
    run::wait(build)?;
    if args.check {
        return check();
    }
    for (path, text) in pages()? {
        std::fs::write(run::root().join(path), text)?;
    }
    Ok(())
}

/// Compares the pages with what binaries that are built already print.
pub fn check() -> Result<()> {
    let fresh = tempfile::tempdir()?;
    let mut differ = Vec::new();
    for (path, text) in pages()? {
        let committed = run::root().join(path);
        if std::fs::read_to_string(&committed).unwrap_or_default() == text {
            continue;
        }
        let new = fresh.path().join(path.replace('/', "-"));
        std::fs::write(&new, text)?;
        let mut diff = run::command("diff", &["-u"]);
        diff.arg(&committed).arg(&new).status()?;
        differ.push(path);
    }
    if !differ.is_empty() {
        let pages = differ.join(", ");
        bail!("{pages}: not what the programs print; run: cargo xtask docs");
    }
    println!("==> docs");
    Ok(())
}

/// Every page with its text.
fn pages() -> Result<[(&'static str, String); 4]> {
    let mut config = format!("# Settings\n\n{MADE}\n\n{CONFIG}\n");
    let mut metrics = format!("# Metrics\n\n{MADE}\n\n{METRICS}\n");
    for program in PROGRAMS {
        write!(config, "\n{}", print(program, "config")?)?;
        for (_, role) in ROLES.iter().filter(|(of, _)| *of == program) {
            let args = [role, "reference", "config"];
            write!(config, "\n{}", print_by(program, &args)?)?;
        }
        write!(metrics, "\n## {program}\n\n{}", print(program, "metrics")?)?;
        if program == "culvert-dataplane" {
            let relay = print_by(program, &[RELAY, "reference", "metrics"])?;
            write!(metrics, "\n## {program} {RELAY}\n\n{relay}")?;
        }
    }
    let mut openapi = print("culvert-control", "openapi")?;
    openapi.truncate(openapi.trim_end().len());
    openapi.push('\n');
    Ok([
        ("docs/config.md", config),
        ("docs/metrics.md", metrics),
        ("docs/errors.md", errors()?),
        ("docs/openapi.json", openapi),
    ])
}

fn print(program: &str, what: &str) -> Result<String> {
    print_by(program, &["reference", what])
}

fn print_by(program: &str, args: &[&str]) -> Result<String> {
    let binary = run::target_dir().join("debug").join(program);
    run::output(run::command(&binary.to_string_lossy(), args))
}

fn errors() -> Result<String> {
    let mut text = format!("# Errors\n\n{MADE}\n\n{ERRORS}\n\n## Tunnel\n\n{TUNNEL}\n\n");
    text.push_str("| word | code | side | status | again | what was seen | what to do |\n");
    text.push_str("|---|---|---|---|---|---|---|\n");
    for reason in CloseReason::ALL {
        let status = reason.http_status().map(|status| status.to_string());
        writeln!(
            text,
            "| `{reason}` | {} | {} | {} | {} | {} | {} |",
            reason.code(),
            reason.side(),
            status.as_deref().unwrap_or("-"),
            reason.retry().as_str(),
            reason.meaning(),
            reason.fix(),
        )?;
    }
    let api = print("culvert-control", "errors")?;
    write!(text, "\n## Admin API\n\n{API}\n\n{api}")?;
    Ok(text)
}

const CONFIG: &str = "\
A flag wins over the environment, that over the file, that over the default. Flags may be written \
with one dash. A name with a `-file` or `_FILE` twin may hold a secret; the twin names a file that \
holds the value. Unknown keys, and everything else that is wrong, are listed at once before \
anything is bound. `<program> --help` prints the same.";

const METRICS: &str = "\
Each process serves its own on `/metrics` of its admin listener, and `process_*` beside them. The \
label `cluster` holds 1,024 clusters; further ones share `_overflow`.";

const ERRORS: &str = "\
The body of an error is `application/problem+json` with `type` `urn:culvert:error:WORD`, or a \
Kubernetes `Status` towards Kubernetes targets. The word is found here.";

const TUNNEL: &str = "\
The word is header `Culvert-Error`, log field, metric label and body `code`; the number travels \
on the wire. Without a status the end is a broken connection, as an answer had begun. Again: \
whether the refused side should try again.";

const API: &str = "The body says what was seen and the one thing to do.";
