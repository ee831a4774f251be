//! Where a setting comes from: flag, then environment, then file, then default.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use clap::{Arg, ArgAction, Command};

use super::Problems;

/// The file read when `--config` is not given and it exists.
pub const DEFAULT_FILE: &str = "/etc/culvert/dataplane.toml";

/// One setting under all its names.
pub struct Setting {
    /// Long flag; the file's key is the same with `_`, the environment's
    /// `CULVERT_` and capitals.
    pub name: &'static str,
    /// Other environment names, from the systems Culvert replaces.
    pub aliases: &'static [&'static str],
    /// What the help says in the place of the value; empty for a switch.
    pub value: &'static str,
    /// Help text.
    pub help: &'static str,
}

impl Setting {
    fn env(&self) -> String {
        format!(
            "CULVERT_{}",
            self.name.replace('-', "_").to_ascii_uppercase()
        )
    }

    fn key(&self) -> String {
        self.name.replace('-', "_")
    }
}

/// The values found, each with the place that named it.
#[derive(Default)]
pub struct Layers(HashMap<&'static str, (String, String)>);

impl Layers {
    /// The value of `name` and where it stands.
    pub fn get(&self, name: &str) -> Option<(&str, &str)> {
        let (value, place) = self.0.get(name)?;
        Some((value, place))
    }

    /// Reads all layers. Help and version end up in the `Err` of clap.
    pub fn read(
        settings: &'static [Setting],
        argv: impl IntoIterator<Item = OsString>,
        env: &dyn Fn(&str) -> Option<String>,
        problems: &mut Problems,
    ) -> Result<Self, clap::Error> {
        let matches = command(settings).try_get_matches_from(double_dashes(settings, argv))?;
        let mut layers = Self::default();
        for setting in settings {
            let given = if setting.value.is_empty() {
                matches.get_flag(setting.name).then(|| "true".to_owned())
            } else {
                matches.get_one::<String>(setting.name).cloned()
            };
            if let Some(value) = given {
                layers.put(setting, value, format!("--{}", setting.name));
            }
        }
        for setting in settings {
            layers.read_env(setting, env, problems);
        }
        let named = matches.get_one::<String>("config").cloned();
        let named = named.or_else(|| env("CULVERT_CONFIG"));
        let path = named.clone().unwrap_or_else(|| DEFAULT_FILE.to_owned());
        match std::fs::read_to_string(&path) {
            Ok(text) => layers.read_file(settings, Path::new(&path), &text, problems),
            Err(why) if named.is_none() && why.kind() == std::io::ErrorKind::NotFound => {}
            Err(why) => problems.add(format!(
                "{path}: the configuration file cannot be read: {why}"
            )),
        }
        Ok(layers)
    }

    fn put(&mut self, setting: &Setting, value: String, place: String) {
        let name = setting.name;
        self.0.entry(name).or_insert((value, place));
    }

    fn read_env(
        &mut self,
        setting: &'static Setting,
        env: &dyn Fn(&str) -> Option<String>,
        problems: &mut Problems,
    ) {
        let own = setting.env();
        let mut found: Option<(String, String)> = None;
        for name in std::iter::once(own.as_str()).chain(setting.aliases.iter().copied()) {
            let Some(value) = env(name) else { continue };
            match &found {
                Some((before, place)) if *before != value => problems.add(format!(
                    "{place} and {name} are both set and differ; keep one of them"
                )),
                Some(_) => {}
                None => found = Some((value, name.to_owned())),
            }
        }
        if let Some((value, place)) = found {
            self.put(setting, value, place);
        }
    }

    fn read_file(
        &mut self,
        settings: &'static [Setting],
        path: &Path,
        text: &str,
        problems: &mut Problems,
    ) {
        let at = |offset: usize| {
            let before = &text[..offset.min(text.len())];
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            format!("{}:{line}:{column}", path.display())
        };
        let table = match toml::de::DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(why) => {
                let offset = why.span().map_or(0, |span| span.start);
                problems.add(format!("{}: {}", at(offset), why.message()));
                return;
            }
        };
        for (key, value) in table {
            let place = at(key.span().start);
            let known = settings.iter().find(|s| s.key() == key.get_ref().as_ref());
            let Some(setting) = known else {
                problems.add(format!("{place}: unknown key `{}`", key.get_ref()));
                continue;
            };
            match plain(value.get_ref()) {
                Some(value) => self.put(setting, value, place),
                None => problems.add(format!(
                    "{place}: `{}` has to be a string, a number or a boolean",
                    setting.key()
                )),
            }
        }
    }
}

fn plain(value: &toml::de::DeValue<'_>) -> Option<String> {
    use toml::de::DeValue;
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

fn command(settings: &'static [Setting]) -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help(format!(
            "Configuration file [default: {DEFAULT_FILE}, when it exists]"
        ));
    let mut command = Command::new("culvert-dataplane")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Moves the bytes of Culvert: accepts clients and agents, relays, counts")
        .arg(config);
    for setting in settings {
        let arg = Arg::new(setting.name).long(setting.name).help(format!(
            "{} [env: {}]",
            setting.help,
            setting.env()
        ));
        command = command.arg(if setting.value.is_empty() {
            arg.action(ArgAction::SetTrue)
        } else {
            arg.value_name(setting.value).allow_hyphen_values(true)
        });
    }
    command
}

/// `-addr :8443` and `-addr=:8443` become `--addr ...`, as Go programs spell them.
fn double_dashes(
    settings: &'static [Setting],
    argv: impl IntoIterator<Item = OsString>,
) -> Vec<OsString> {
    argv.into_iter()
        .map(|arg| {
            let Some(text) = arg.to_str() else { return arg };
            let Some(name) = text.strip_prefix('-') else {
                return arg;
            };
            let bare = name.split('=').next().unwrap_or(name);
            if bare == "config" || settings.iter().any(|setting| setting.name == bare) {
                OsString::from(format!("-{text}"))
            } else {
                arg
            }
        })
        .collect()
}
