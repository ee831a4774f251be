//! The command line of this program.

use clap::Command;
use culvert_config::Program;

/// This program.
pub const PROGRAM: Program = Program {
    name: "culvert-dataplane",
    about: ABOUT,
    version: env!("CARGO_PKG_VERSION"),
    file: "/etc/culvert/dataplane.toml",
    settings: SETTINGS,
    references: &[("config", config), ("metrics", metrics)],
    verbs,
};

#[cfg(feature = "hub")]
const ABOUT: &str = "Moves the bytes of Culvert: accepts clients and agents, relays, counts";
#[cfg(not(feature = "hub"))]
const ABOUT: &str = "Relays pairs: two sides that only dial out meet here";

#[cfg(feature = "hub")]
use super::hub::SETTINGS;
#[cfg(not(feature = "hub"))]
const SETTINGS: &[culvert_config::Setting] = &[];

fn verbs(command: Command) -> Command {
    #[cfg(feature = "relay")]
    let command = command.subcommand(super::relay::verb());
    #[cfg(feature = "hub")]
    let command = command.subcommand(super::probe::verb());
    command
}

/// The settings of each role under a heading of its own.
fn config() -> String {
    let roles = [
        #[cfg(feature = "hub")]
        PROGRAM.reference(),
        #[cfg(feature = "relay")]
        super::RELAY.reference(),
    ];
    roles.join("\n")
}

fn metrics() -> String {
    let roles = [
        #[cfg(feature = "hub")]
        crate::metrics::Metrics::default().registry.describe(),
        #[cfg(feature = "relay")]
        format!(
            "## {}\n\n{}",
            super::RELAY.name,
            crate::relay::describe_metrics()
        ),
    ];
    roles.join("\n")
}

/// A relay-only build has nothing else to run.
#[cfg(not(feature = "hub"))]
pub(super) fn without_verb(
    argv: Vec<std::ffi::OsString>,
    env: &dyn Fn(&str) -> Option<String>,
) -> super::ConfigError {
    match culvert_config::Layers::read(&PROGRAM, argv, env) {
        Err(usage) => usage.into(),
        Ok(_) => {
            let mut problems = super::Problems::default();
            problems.add("this build is a relay only: run culvert-dataplane relay".to_owned());
            problems.into()
        }
    }
}
