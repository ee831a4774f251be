//! Flag over environment over alias over file over default, with the origin of
//! each value kept for messages.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::de::{DeTable, DeValue};

use super::settings::{SETTINGS, Setting};

/// Read when `--config` says nothing; its absence is no problem.
const DEFAULT_FILE: &str = "/etc/culvert/control.toml";
/// Longest secret file or configuration file in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A value and where it came from. No `Debug`: it may be a secret.
#[derive(Clone)]
pub(super) struct Sourced {
    pub text: String,
    pub from: String,
}

/// All settings after the layers were put together.
pub(super) struct Layers {
    values: BTreeMap<&'static str, Sourced>,
    pub problems: Vec<String>,
    pub warnings: Vec<String>,
}

impl Layers {
    /// Puts environment and file below the flags of `matches`.
    pub fn read(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut layers = Self {
            values: BTreeMap::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let file = layers.file(matches, env);
        for setting in SETTINGS {
            let value = layers
                .flag(setting, matches)
                .or_else(|| layers.environment(setting, env))
                .or_else(|| file.get(setting.name).cloned())
                .or_else(|| default(setting));
            if let Some(value) = value {
                layers.values.insert(setting.name, value);
            }
        }
        layers
    }

    /// The value of `name`, unless nobody set it and it has no default.
    pub fn get(&self, name: &str) -> Option<&Sourced> {
        self.values.get(name).filter(|value| !value.text.is_empty())
    }

    fn flag(&mut self, setting: &Setting, matches: &ArgMatches) -> Option<Sourced> {
        let given = |id: &str| {
            let from_line = matches.value_source(id) == Some(ValueSource::CommandLine);
            from_line
                .then(|| matches.get_one::<String>(id).cloned())
                .flatten()
        };
        let direct = given(setting.name).map(|text| Sourced {
            text,
            from: format!("--{}", setting.name),
        });
        if !setting.secret {
            return direct;
        }
        let twin = format!("{}-file", setting.name);
        let of_file = given(&twin).and_then(|path| self.secret_file(&path, &format!("--{twin}")));
        self.first_of(direct.into_iter().chain(of_file).collect())
    }

    fn environment(
        &mut self,
        setting: &Setting,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Option<Sourced> {
        let set = |name: &str| env(name).filter(|text| !text.is_empty());
        let mut found = Vec::new();
        for name in std::iter::once(&setting.env).chain(setting.env_aliases) {
            found.extend(set(name).map(|text| Sourced {
                text,
                from: format!("${name}"),
            }));
            let twin = format!("{name}_FILE");
            if setting.secret
                && let Some(path) = set(&twin)
            {
                found.extend(self.secret_file(&path, &format!("${twin}")));
            }
        }
        self.first_of(found)
    }

    /// The own name wins over an alias that says something else; one warning names both.
    fn first_of(&mut self, found: Vec<Sourced>) -> Option<Sourced> {
        let mut found = found.into_iter();
        let first = found.next()?;
        for other in found.filter(|other| other.text != first.text) {
            self.warnings.push(format!(
                "{} wins over {}, which differs",
                first.from, other.from
            ));
        }
        Some(first)
    }

    fn secret_file(&mut self, path: &str, from: &str) -> Option<Sourced> {
        match read_bounded(Path::new(path)) {
            Ok(text) => Some(Sourced {
                text: text.trim().to_owned(),
                from: format!("{from} ({path})"),
            }),
            Err(why) => {
                self.problems
                    .push(format!("{from}: cannot read {path}: {why}"));
                None
            }
        }
    }

    fn file(
        &mut self,
        matches: &ArgMatches,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> BTreeMap<&'static str, Sourced> {
        let asked = matches.get_one::<String>("config").cloned();
        let asked = asked.or_else(|| env("CULVERT_CONFIG").filter(|path| !path.is_empty()));
        let path = asked.as_deref().unwrap_or(DEFAULT_FILE);
        match read_bounded(Path::new(path)) {
            Ok(text) => self.parse_file(path, &text),
            Err(why) => {
                if asked.is_some() || why.kind() != std::io::ErrorKind::NotFound {
                    self.problems
                        .push(format!("configuration file {path}: {why}"));
                }
                BTreeMap::new()
            }
        }
    }

    fn parse_file(&mut self, path: &str, text: &str) -> BTreeMap<&'static str, Sourced> {
        let mut values = BTreeMap::new();
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(why) => {
                let at = position(text, why.span().map_or(0, |span| span.start));
                self.problems
                    .push(format!("{path}:{at}: {}", why.message()));
                return values;
            }
        };
        for (key, value) in table {
            let at = format!("{path}:{}", position(text, key.span().start));
            let key = key.get_ref();
            let name = key.replace('_', "-");
            let row = SETTINGS
                .iter()
                .find(|row| row.name == name && !key.contains('-'));
            match (row, plain(value.get_ref())) {
                (None, _) => self.problems.push(format!("{at}: unknown key {key:?}")),
                (_, None) => self
                    .problems
                    .push(format!("{at}: {key} takes a text or a number")),
                (Some(row), Some(text)) => {
                    values.insert(row.name, Sourced { text, from: at });
                }
            }
        }
        values
    }
}

/// The command line, without its verbs.
pub(super) fn arguments(mut command: Command) -> Command {
    let config = format!("Configuration file [env: CULVERT_CONFIG] [default: {DEFAULT_FILE}]");
    command = command.arg(flag("config", &config));
    for row in SETTINGS {
        let names = std::iter::once(row.env).chain(row.env_aliases.iter().copied());
        let mut help = format!(
            "{} [env: {}]",
            row.help,
            names.collect::<Vec<_>>().join(", ")
        );
        if !row.default.is_empty() {
            help = format!("{help} [default: {}]", row.default);
        }
        command = command.arg(flag(row.name, &help));
        if row.secret {
            let twin = format!("{}-file", row.name);
            command = command.arg(flag(twin, &format!("File that holds --{}", row.name)));
        }
    }
    command
}

/// `-addr` and `-addr=x` mean `--addr`, as in Go's flag package.
pub(super) fn two_dashes(arg: OsString) -> OsString {
    let Some(rest) = arg.to_str().and_then(|text| text.strip_prefix('-')) else {
        return arg;
    };
    let name = rest.split('=').next().unwrap_or(rest);
    let twin = name.strip_suffix("-file");
    let known = |row: &Setting| row.name == name || (row.secret && Some(row.name) == twin);
    if name == "config" || SETTINGS.iter().any(known) {
        format!("--{rest}").into()
    } else {
        arg
    }
}

fn flag(name: impl Into<String>, help: &str) -> Arg {
    let name = name.into();
    Arg::new(name.clone())
        .long(name)
        .help(help.to_owned())
        .value_name("VALUE")
        .action(ArgAction::Set)
}

fn default(setting: &Setting) -> Option<Sourced> {
    (!setting.default.is_empty()).then(|| Sourced {
        text: setting.default.to_owned(),
        from: format!("default of --{}", setting.name),
    })
}

fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

fn position(text: &str, offset: usize) -> String {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = before
        .iter()
        .rev()
        .take_while(|byte| **byte != b'\n')
        .count()
        + 1;
    format!("{line}:{column}")
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}
