//! The command line of the harness.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::lab::Rivals;
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
    /// the smokes when absent.
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
    /// Where rathole and bore lie, built by `cargo xtask perf --rivals`; CULVERT_RIVALS_DIR when
    /// absent.
    #[arg(long)]
    rivals_dir: Option<PathBuf>,
    /// A program of a rival that no distribution has; may be repeated.
    #[arg(long, value_name = "NAME=PATH", value_parser = |text: &str| Rivals::parse(text))]
    rival_bin: Vec<(String, PathBuf)>,
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
    /// Make summary and plots of a run's directory anew, from its rows.
    Report {
        /// The run's directory.
        directory: PathBuf,
        /// Directory of the scenarios.
        #[arg(long, default_value = "perf/scenarios")]
        scenarios: PathBuf,
    },
}

/// Carries out the command.
///
/// # Errors
/// Missing packages or binaries, a rival that does not start, a file that cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.role {
        Some(Role::Relay(options)) => return relay::run(options),
        Some(Role::Report {
            directory,
            scenarios,
        }) => return report::write(directory, Vec::new(), "", scenarios),
        None => {}
    }
    packages::ensure()?;
    let binaries = match &arguments.binaries {
        Some(directory) => directory.clone(),
        None => std::env::var_os("CULVERT_BIN_DIR")
            .map(PathBuf::from)
            .context("--binaries or CULVERT_BIN_DIR must name the release build")?,
    };
    let built = std::env::var_os("CULVERT_RIVALS_DIR").map(PathBuf::from);
    let options = Options {
        binaries: release_binaries(&binaries)?,
        rivals: Rivals {
            directory: arguments.rivals_dir.clone().or(built),
            given: arguments.rival_bin.iter().cloned().collect(),
        },
        rounds: arguments.rounds,
        keep_noisy: arguments.keep_noisy,
    };
    let out = arguments.out.clone().unwrap_or_else(|| {
        let run = format!("runs/{}-{}", host::today(), host::class());
        arguments.home.join(run)
    });
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let command = format!("culvert-perf {command}");
    let scenarios = arguments.home.join("scenarios");
    for name in names(arguments)? {
        let scenario = Scenario::read(&scenarios.join(format!("{name}.toml")))?;
        say(&format!("== {name}: {}", scenario.title));
        let host_text = host::describe(&options, &command)?;
        let taken = carry_out(&name, &scenario, &options, &mut |line| say(line))
            .with_context(|| format!("scenario {name}"))?;
        // Written after each: a later one that fails takes nothing along.
        let outcome = Outcome::new(name, scenario, taken);
        report::write(&out, vec![outcome], &host_text, &scenarios)?;
    }
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
    names.retain(|name| !name.starts_with("smoke"));
    names.sort();
    Ok(names)
}

/// Progress goes to stdout; a closed pipe is nobody's concern.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
