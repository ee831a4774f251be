//! The command line of the harness.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::report::{self, Outcome};
use crate::run::{Options, release_binaries, run as carry_out};
use crate::scenario::Scenario;
use crate::{host, packages, relay};

/// Measures Culvert beside its rivals, in one run, and writes
/// `perf/runs/<date>-<host class>/`.
#[derive(clap::Parser, Debug)]
#[command(name = "culvert-perf", version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What else the program can be.
    #[command(subcommand)]
    role: Option<Role>,
    /// Scenario (name of a file in perf/scenarios, without .toml); may be repeated. All but
    /// `smoke` when absent.
    #[arg(long)]
    scenario: Vec<String>,
    /// Rounds in place of the scenarios' own.
    #[arg(long)]
    rounds: Option<usize>,
    /// Where the release build of the binaries lies; CULVERT_BIN_DIR when absent.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Directory of the perf crate.
    #[arg(long, default_value = "perf")]
    home: PathBuf,
    /// Where to write; `<home>/runs/<date>-<host class>` when absent.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Do not repeat samples that a busy host spoiled; their rows still say so.
    #[arg(long)]
    keep_noisy: bool,
}

/// Processes of a measurement, other than the measurement itself.
#[derive(clap::Subcommand, Debug)]
enum Role {
    /// Be a one-hop relay to compare with.
    Relay(relay::Relay),
}

/// Carries out the command.
///
/// # Errors
/// Missing packages or binaries, a rival that does not start, a file that cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(Role::Relay(options)) = &arguments.role {
        return relay::run(options);
    }
    packages::ensure()?;
    let binaries = match &arguments.binaries {
        Some(directory) => directory.clone(),
        None => std::env::var_os("CULVERT_BIN_DIR")
            .map(PathBuf::from)
            .context("--binaries or CULVERT_BIN_DIR must name the release build")?,
    };
    let options = Options {
        binaries: release_binaries(&binaries)?,
        rounds: arguments.rounds,
        keep_noisy: arguments.keep_noisy,
    };
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let host_text = host::describe(&options.binaries, &format!("culvert-perf {command}"))?;
    let mut outcomes = Vec::new();
    for name in names(arguments)? {
        let scenario = Scenario::read(&arguments.home.join(format!("scenarios/{name}.toml")))?;
        say(&format!("== {name}: {}", scenario.title));
        let samples = carry_out(&name, &scenario, &options, &mut |line| say(line))
            .with_context(|| format!("scenario {name}"))?;
        outcomes.push(Outcome {
            name,
            scenario,
            samples,
        });
    }
    let out = arguments.out.clone().unwrap_or_else(|| {
        arguments
            .home
            .join(format!("runs/{}-{}", host::today(), host::class()))
    });
    report::write(&out, &outcomes, &host_text)?;
    say(&format!("written: {}", out.join("summary.md").display()));
    Ok(())
}

fn names(arguments: &Arguments) -> Result<Vec<String>> {
    if !arguments.scenario.is_empty() {
        return Ok(arguments.scenario.clone());
    }
    let directory = arguments.home.join("scenarios");
    let mut names = Vec::new();
    for entry in
        std::fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?
    {
        let path = entry?.path();
        if path.extension() == Some("toml".as_ref()) {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    names.retain(|name| name != "smoke");
    names.sort();
    Ok(names)
}

/// Progress goes to stdout; a closed pipe is nobody's concern.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
