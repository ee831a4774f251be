//! Flag over environment over alias over file over default, with the origin of
//! each value kept for messages.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::de::{DeTable, DeValue};

use super::Refused;
use super::settings::{Holds, SETTINGS, Setting};

/// Read when `--config` says nothing; its absence is no problem.
const DEFAULT_FILE: &str = "/etc/culvert/agent.toml";
/// Longest secret file or configuration file in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A value and where it came from. Has no `Debug`: it may be a secret.
#[derive(Clone)]
pub(super) struct Sourced {
    pub text: String,
    pub from: String,
    /// Nobody set it: the table's default.
    pub defaulted: bool,
}

/// All settings after the layers were put together.
pub(super) struct Layers {
    values: BTreeMap<&'static str, Sourced>,
    pub problems: Vec<String>,
    pub warnings: Vec<String>,
}

impl Layers {
    /// Reads flags, environment and file.
    pub fn read(
        argv: impl IntoIterator<Item = OsString>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Refused> {
        let matches = command()
            .try_get_matches_from(argv.into_iter().map(two_dashes))
            .map_err(Refused::Usage)?;
        let mut layers = Self {
            values: BTreeMap::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let file = layers.file(&matches, env);
        for setting in SETTINGS {
            let value = layers
                .flag(setting, &matches)
                .or_else(|| layers.environment(setting, env))
                .or_else(|| file.get(setting.name).cloned())
                .or_else(|| default(setting));
            if let Some(value) = value {
                layers.values.insert(setting.name, value);
            }
        }
        Ok(layers)
    }

    /// The value of `name`, unless nobody set it and it has no default.
    pub fn get(&self, name: &str) -> Option<&Sourced> {
        self.values.get(name).filter(|value| !value.text.is_empty())
    }

    fn flag(&mut self, setting: &Setting, matches: &ArgMatches) -> Option<Sourced> {
        let given = |id: &str| {
            let source = matches.value_source(id)?;
            (source == clap::parser::ValueSource::CommandLine).then_some(())?;
            let all: Vec<&str> = matches
                .get_many::<String>(id)?
                .map(String::as_str)
                .collect();
            Some(all.join(","))
        };
        let verb = || match matches.subcommand() {
            Some(("join", verb)) if setting.name == "join" => verb.get_one::<String>("string"),
            _ => None,
        };
        let direct = given(setting.name)
            .or_else(|| verb().cloned())
            .map(|text| Sourced {
                text,
                from: format!("--{}", setting.name),
                defaulted: false,
            });
        if setting.holds != Holds::Secret {
            return direct;
        }
        if direct.is_some() && setting.name == "token" {
            self.warnings.push(
                "--token on the command line is visible to every process of this host; use --token-file".to_owned(),
            );
        }
        let twin = format!("{}-file", setting.name);
        let from_file = given(&twin).and_then(|path| self.secret_file(&path, &format!("--{twin}")));
        self.one_of(direct.into_iter().chain(from_file).collect())
    }

    fn environment(
        &mut self,
        setting: &Setting,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Option<Sourced> {
        let mut found = Vec::new();
        for name in std::iter::once(&setting.env).chain(setting.env_aliases) {
            if let Some(text) = env(name).filter(|text| !text.is_empty()) {
                found.push(Sourced {
                    text,
                    from: format!("${name}"),
                    defaulted: false,
                });
            }
            if setting.holds == Holds::Secret {
                let twin = format!("{name}_FILE");
                if let Some(path) = env(&twin).filter(|path| !path.is_empty()) {
                    found.extend(self.secret_file(&path, &format!("${twin}")));
                }
            }
        }
        self.one_of(found)
    }

    /// Two names for one thing may both be set, but only to one value.
    fn one_of(&mut self, found: Vec<Sourced>) -> Option<Sourced> {
        let mut found = found.into_iter();
        let first = found.next()?;
        for other in found {
            if other.text != first.text {
                self.problems.push(format!(
                    "{} and {} are set to different values; keep one",
                    first.from, other.from
                ));
            }
        }
        Some(first)
    }

    fn secret_file(&mut self, path: &str, from: &str) -> Option<Sourced> {
        match read_bounded(Path::new(path)) {
            Ok(text) => Some(Sourced {
                text: text.trim().to_owned(),
                from: format!("{from} ({path})"),
                defaulted: false,
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
        let asked = matches
            .get_one::<String>("config")
            .cloned()
            .or_else(|| env("CULVERT_CONFIG").filter(|path| !path.is_empty()));
        let path = asked.as_deref().unwrap_or(DEFAULT_FILE);
        let text = match read_bounded(Path::new(path)) {
            Ok(text) => text,
            Err(why) => {
                if asked.is_some() || why.kind() != std::io::ErrorKind::NotFound {
                    self.problems
                        .push(format!("cannot read the configuration file {path}: {why}"));
                }
                return BTreeMap::new();
            }
        };
        self.parse_file(path, &text)
    }

    fn parse_file(&mut self, path: &str, text: &str) -> BTreeMap<&'static str, Sourced> {
        let mut out = BTreeMap::new();
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(why) => {
                let at = position(text, why.span().map_or(0, |span| span.start));
                self.problems
                    .push(format!("{path}:{at}: {}", why.message()));
                return out;
            }
        };
        for (key, value) in table {
            let at = format!("{path}:{}", position(text, key.span().start));
            let name = key.get_ref().replace('_', "-");
            let twin = name.strip_suffix("-file");
            let row = SETTINGS.iter().find(|row| {
                row.name == name || (row.holds == Holds::Secret && Some(row.name) == twin)
            });
            let (Some(row), true) = (row, !key.get_ref().contains('-')) else {
                self.problems
                    .push(format!("{at}: unknown key {:?}", key.get_ref()));
                continue;
            };
            let Some(value) = plain(value.get_ref()) else {
                self.problems.push(format!(
                    "{at}: {} takes a text, number, true/false or a list of texts",
                    key.get_ref()
                ));
                continue;
            };
            let value = if row.name == name {
                Some(Sourced {
                    text: value,
                    from: at,
                    defaulted: false,
                })
            } else {
                self.secret_file(&value, &at)
            };
            let kept = out.remove(row.name).into_iter().chain(value).collect();
            if let Some(value) = self.one_of(kept) {
                out.insert(row.name, value);
            }
        }
        out
    }
}

fn default(setting: &Setting) -> Option<Sourced> {
    (!setting.default.is_empty()).then(|| Sourced {
        text: setting.default.to_owned(),
        from: format!("default of --{}", setting.name),
        defaulted: true,
    })
}

fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Boolean(on) => Some(on.to_string()),
        DeValue::Array(items) => {
            let items: Option<Vec<_>> = items
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned))
                .collect();
            items.map(|items| items.join(","))
        }
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
    let file = std::fs::File::open(path)?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// `-addr` and `-addr=x` mean `--addr`, as in Go's flag package.
fn two_dashes(arg: OsString) -> OsString {
    let Some(text) = arg.to_str() else { return arg };
    let Some(rest) = text.strip_prefix('-') else {
        return arg;
    };
    let name = rest.split('=').next().unwrap_or(rest);
    let twin = name.strip_suffix("-file");
    let known = name == "config"
        || SETTINGS.iter().any(|row| {
            row.name == name
                || row.also.contains(&name)
                || (row.holds == Holds::Secret && Some(row.name) == twin)
        });
    if known {
        format!("-{text}").into()
    } else {
        arg
    }
}

fn command() -> Command {
    let mut command = Command::new("culvert-agent")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Dials out from the private side and joins streams to local services")
        .arg(text_flag(
            "config",
            &format!("Configuration file [env: CULVERT_CONFIG] [default: {DEFAULT_FILE}]"),
        ))
        .subcommand(
            Command::new("join")
                .about("Run with a join string")
                .arg(Arg::new("string").value_name("CVJ").required(true)),
        );
    for row in SETTINGS {
        let mut envs = row.env.to_owned();
        for alias in row.env_aliases {
            envs.push_str(", ");
            envs.push_str(alias);
        }
        let mut help = format!("{} [env: {envs}]", row.help);
        if !row.default.is_empty() {
            help.push_str(&format!(" [default: {}]", row.default));
        }
        let mut arg = text_flag(row.name, &help).visible_aliases(row.also.iter().copied());
        match row.holds {
            Holds::Switch => {
                arg = arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true");
            }
            Holds::Many => arg = arg.action(ArgAction::Append),
            Holds::Text | Holds::Secret => {}
        }
        command = command.arg(arg);
        if row.holds == Holds::Secret {
            let twin = format!("{}-file", row.name);
            command = command.arg(text_flag(twin, &format!("File that holds --{}", row.name)));
        }
    }
    command
}

fn text_flag(name: impl Into<String>, help: &str) -> Arg {
    let name = name.into();
    Arg::new(name.clone())
        .long(name)
        .help(help.to_owned())
        .value_name("VALUE")
        .global(true)
        .action(ArgAction::Set)
}
