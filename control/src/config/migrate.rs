//! `culvert-control migrate-store`: the store is copied, nothing is served.

use clap::{Arg, Command};

use super::Checks;
use crate::store::Dsn;

const VERB: &str = "migrate-store";
const FROM: &str = "from";

pub(super) fn verb(command: Command) -> Command {
    let from = Arg::new(FROM)
        .long(FROM)
        .value_name("sqlite:PATH")
        .help("The SQLite store to copy; default: control.db in --state-dir");
    super::identity::verb(command).subcommand(
        Command::new(VERB)
            .about("Copy a SQLite store into the empty PostgreSQL database of --db-dsn, and end")
            .arg(from),
    )
}

impl Checks {
    /// The store to copy, where that was asked for.
    pub(super) fn migrate_from(&mut self, own: &Dsn, default: Dsn) -> Option<Dsn> {
        let verb = self.layers.matches.subcommand_matches(VERB)?;
        let from = verb.get_one::<String>(FROM).cloned();
        if matches!(own, Dsn::Sqlite(_)) {
            self.say(
                "db-dsn",
                "names no PostgreSQL database to copy the store into",
            );
        }
        match from.map(|text| Dsn::parse(&text)) {
            None => Some(default),
            Some(Ok(from)) => Some(from),
            Some(Err(why)) => {
                self.problems.push(format!("--{FROM}: {why}"));
                None
            }
        }
    }
}
