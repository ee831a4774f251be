//! The command line of a program, made from its table.

use std::ffi::OsString;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::{Holds, Program};

impl Program {
    /// The command line with `--config`, every setting and the program's verbs.
    #[must_use]
    pub fn command(&self) -> Command {
        let help = format!(
            "Configuration file [env: CULVERT_CONFIG] [default: {}]",
            self.file
        );
        let mut command = Command::new(self.name)
            .version(self.version)
            .about(self.about)
            .arg(flag("config".to_owned(), help));
        for setting in self.settings {
            let own = setting.env();
            let envs = std::iter::once(own.as_str()).chain(setting.env_aliases.iter().copied());
            let envs = envs.collect::<Vec<_>>().join(", ");
            let mut help = format!("{} [env: {envs}]", setting.help);
            if !setting.default.is_empty() {
                help.push_str(&format!(" [default: {}]", setting.default));
            }
            let mut arg = flag(setting.name.to_owned(), help);
            arg = arg
                .visible_aliases(setting.also.iter().copied())
                .hide(setting.is_hidden());
            command = command.arg(match setting.holds {
                Holds::Switch => arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true"),
                Holds::Many => arg.action(ArgAction::Append),
                Holds::Text | Holds::Secret | Holds::Guarded => arg.allow_hyphen_values(true),
            });
            if setting.has_file_twin() {
                let help = format!("File that holds --{}", setting.name);
                command = command.arg(flag(format!("{}-file", setting.name), help));
            }
        }
        (self.verbs)(command).subcommand(self.reference_verb())
    }

    fn reference_verb(&self) -> Command {
        let names: Vec<&str> = ["config"].into_iter().chain(self.names()).collect();
        let what = Arg::new("what")
            .value_name("WHAT")
            .required(true)
            .value_parser(PossibleValuesParser::new(names));
        Command::new("reference")
            .about("Print a reference of this program in Markdown or JSON")
            .arg(what)
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        // A program of several roles prints its `config` itself.
        let others = self.references.iter().map(|(name, _)| *name);
        others.filter(|name| *name != "config")
    }

    /// What `reference` was asked for, to be printed in the way of `--help`.
    pub(crate) fn asked_reference(&self, matches: &ArgMatches) -> Option<clap::Error> {
        let verb = matches.subcommand_matches("reference")?;
        let what = verb.get_one::<String>("what")?;
        let other = self.references.iter().find(|(name, _)| name == what);
        let text = other.map_or_else(|| self.reference(), |(_, print)| print());
        let printer = Command::new("reference").override_help(text);
        printer.try_get_matches_from(["reference", "--help"]).err()
    }
}

/// `-addr` and `-addr=x` mean `--addr`, as in Go's flag package.
pub(crate) fn two_dashes(program: &Program, arg: OsString) -> OsString {
    let Some(rest) = arg.to_str().and_then(|text| text.strip_prefix('-')) else {
        return arg;
    };
    let name = rest.split('=').next().unwrap_or(rest);
    let twin = name.strip_suffix("-file");
    let known = name == "config"
        || program.settings.iter().any(|setting| {
            setting.name == name
                || setting.also.contains(&name)
                || (setting.has_file_twin() && Some(setting.name) == twin)
        });
    if known {
        format!("--{rest}").into()
    } else {
        arg
    }
}

fn flag(name: String, help: String) -> Arg {
    Arg::new(name.clone())
        .long(name)
        .help(help)
        .value_name("VALUE")
        .action(ArgAction::Set)
}
