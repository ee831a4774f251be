//! The table of what can be set.

use std::fmt::Write as _;

use clap::Command;

use crate::Sourced;

/// What a setting holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// One text.
    Text,
    /// Several texts: a repeated flag, or a list separated by commas.
    Many,
    /// `true` or `false`; the bare flag means `true`.
    Switch,
    /// One text that is never shown; has a `-file` twin, and its flag is warned about.
    Secret,
    /// One text that may hold a secret; has a `-file` twin.
    Guarded,
}

/// One row of the table.
pub struct Setting {
    /// Long flag; the file's key is the same with `_` for `-`, the environment's
    /// name is `CULVERT_` and the same in capitals.
    pub name: &'static str,
    /// Further spellings of the flag.
    pub also: &'static [&'static str],
    /// Names in the environment that other products use for the same thing.
    pub env_aliases: &'static [&'static str],
    /// Own name in the environment where it is not made from `name`.
    pub env: Option<&'static str>,
    /// Kind of value.
    pub holds: Holds,
    /// Value when nothing is said; empty for none.
    pub default: &'static str,
    /// One line for `--help` and the reference; empty for what tests need, which neither names.
    pub help: &'static str,
}

/// A row without aliases.
#[must_use]
pub const fn row(
    name: &'static str,
    holds: Holds,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting {
        name,
        also: &[],
        env_aliases: &[],
        env: None,
        holds,
        default,
        help,
    }
}

/// A reference that a program prints of itself: its name, and what makes it.
pub type Reference = (&'static str, fn() -> String);

/// A process and its table.
pub struct Program {
    /// The binary's name.
    pub name: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    /// The version.
    pub version: &'static str,
    /// The file read when `--config` says nothing; its absence is no problem.
    pub file: &'static str,
    /// The table.
    pub settings: &'static [Setting],
    /// What `reference NAME` prints, apart from `config`, by name.
    pub references: &'static [Reference],
    /// Adds verbs of the process to its command line.
    pub verbs: fn(Command) -> Command,
}

impl Setting {
    /// The own name in the environment.
    #[must_use]
    pub fn env(&self) -> String {
        let made = || {
            format!(
                "CULVERT_{}",
                self.name.replace('-', "_").to_ascii_uppercase()
            )
        };
        self.env.map_or_else(made, str::to_owned)
    }

    pub(crate) fn is_hidden(&self) -> bool {
        self.help.is_empty()
    }

    pub(crate) fn has_file_twin(&self) -> bool {
        matches!(self.holds, Holds::Secret | Holds::Guarded)
    }

    pub(crate) fn default_value(&self) -> Option<Sourced> {
        (!self.default.is_empty()).then(|| Sourced {
            text: self.default.to_owned(),
            from: format!("default of --{}", self.name),
            defaulted: true,
        })
    }
}

impl Program {
    /// All settings as a Markdown table under a heading.
    #[must_use]
    pub fn reference(&self) -> String {
        let Self {
            name, about, file, ..
        } = self;
        let mut text = format!("## {name}\n\n{about}. File: `{file}`, or `--config FILE`.\n\n");
        text.push_str("| flag | environment | file | default | what |\n|---|---|---|---|---|\n");
        for setting in self.settings.iter().filter(|it| !it.is_hidden()) {
            let flags = std::iter::once(setting.name).chain(setting.also.iter().copied());
            let mut flags: Vec<String> = flags.map(|flag| format!("`--{flag}`")).collect();
            let own = setting.env();
            let envs = std::iter::once(own.as_str()).chain(setting.env_aliases.iter().copied());
            let mut envs = envs
                .map(|env| format!("`{env}`"))
                .collect::<Vec<_>>()
                .join(", ");
            if setting.has_file_twin() {
                flags.push(format!("`--{}-file`", setting.name));
                envs.push_str(", each with `_FILE`");
            }
            let default = match setting.default {
                "" => "-".to_owned(),
                default => format!("`{default}`"),
            };
            let key = setting.name.replace('-', "_");
            let (flags, help) = (flags.join(", "), setting.help.replace('|', "\\|"));
            let _ = writeln!(text, "| {flags} | {envs} | `{key}` | {default} | {help} |");
        }
        text
    }
}
