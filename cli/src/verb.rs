//! The verbs, one file each.

mod agent;
mod api_token;
mod audit;
mod ca;
mod check;
mod cluster;
mod connect;
mod debug;
mod follow;
mod join;
mod license;
mod login;
mod pair;
mod personal;
mod route;
mod status;
mod store;
mod systemd;
mod token;
mod version;

use std::io::{IsTerminal as _, Write as _};

use clap::CommandFactory as _;

use crate::api::Api;
use crate::args::{Cli, Global, Verb};
use crate::error::{CliError, Result};
use crate::{quickstart, top};

/// Runs what the command line says.
///
/// # Errors
/// What went wrong, with its side and one fix.
pub async fn run(cli: Cli) -> Result<()> {
    let Cli { global, verb } = cli;
    match verb {
        Verb::Quickstart(args) => quickstart::run(&args).await,
        Verb::Cluster(verb) => cluster::run(&global, &Api::new(&global)?, verb).await,
        Verb::Login(args) => login::login(&global, &args).await,
        Verb::Logout => login::logout(&global).await,
        Verb::Whoami => login::whoami(&global, &Api::new(&global)?).await,
        Verb::Token(verb) => token::run(&global, &Api::new(&global)?, verb).await,
        Verb::Route(verb) => route::run(&global, &Api::new(&global)?, verb).await,
        Verb::PersonalToken(verb) => personal::run(&global, &Api::new(&global)?, verb).await,
        Verb::Agent(verb) => agent::run(&global, &Api::new(&global)?, verb).await,
        Verb::Connect(verb) => connect::run(&global, &Api::new(&global)?, verb).await,
        Verb::License(verb) => license::run(&global, verb).await,
        Verb::Pair(verb) => pair::run(&global, verb).await,
        Verb::Ca(verb) => ca::run(&global, &Api::new(&global)?, verb).await,
        Verb::Store(verb) => store::run(&global, verb),
        Verb::Audit(args) => audit::run(&global, &Api::new(&global)?, &args).await,
        Verb::Status => status::run(&global, &Api::new(&global)?).await,
        Verb::Top(args) => top::run(&global, &args).await,
        Verb::Check(verb) => check::run(&global, verb),
        Verb::Debug(verb) => debug::run(&global, verb).await,
        Verb::Follow { parent, program } => Err(follow::run(parent, &program)),
        Verb::Version => {
            version::run(&global);
            Ok(())
        }
        Verb::Completion { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "culvert",
                &mut std::io::stdout(),
            );
            Ok(())
        }
    }
}

/// Asks before something is destroyed; `--yes` and `--dry-run` answer for the user.
fn confirm(global: &Global, what: &str) -> Result<()> {
    if global.yes || global.dry_run {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let fix = "add --yes where nobody can be asked";
        return Err(CliError::usage("this wants a confirmation", what, fix));
    }
    eprint!("{what} Go on? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(CliError::usage(
        "not confirmed",
        what,
        "answer y, or add --yes",
    ))
}

/// A path segment: ids are checked here, so that a typo is named before it travels.
fn cluster_path(id: &str, rest: &str) -> Result<String> {
    let id: culvert_proto::id::ClusterId = id.parse().map_err(|why| {
        let fix = "use 1 to 63 lower-case letters, digits and inner hyphens";
        CliError::usage("this is no cluster id", format!("{id:?}: {why}"), fix)
    })?;
    Ok(format!("/api/v1/clusters/{id}{rest}"))
}
