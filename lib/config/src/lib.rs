//! Settings of a process: flag over environment over file over default, each
//! value with the place it came from, all problems collected.
//!
//! A process keeps one table of [`Setting`]s; `--help`, the environment, the
//! file and the reference in `docs/` are all read through it. Floor 1: knows no
//! other crate of ours but, for the clusters file, `culvert-proto`.
#![forbid(unsafe_code)]

#[cfg(feature = "clusters")]
pub mod clusters;
mod command;
mod file;
mod setting;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::ArgMatches;
use clap::parser::ValueSource;

pub use setting::{Holds, Program, Reference, Setting, row};

/// Longest configuration or secret file, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// A value and where it came from. Has no `Debug`: it may be a secret.
#[derive(Clone)]
pub struct Sourced {
    /// The value as it was written.
    pub text: String,
    /// The flag, variable, or file with line and column that gave it.
    pub from: String,
    /// Nobody set it: the table's default.
    pub defaulted: bool,
}

impl Sourced {
    fn set(text: impl Into<String>, from: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            from: from.into(),
            defaulted: false,
        }
    }
}

/// All settings after the layers were put together.
pub struct Layers {
    values: BTreeMap<&'static str, Sourced>,
    /// What clap parsed; verbs of the process are found here.
    pub matches: ArgMatches,
    /// What has to be mended before a start, a sentence each.
    pub problems: Vec<String>,
    /// What works and should be changed.
    pub warnings: Vec<String>,
}

impl Layers {
    /// Reads flags, environment and file.
    ///
    /// ```
    /// use culvert_config::{Holds, Layers, Program, row};
    ///
    /// const PROGRAM: Program = Program {
    ///     name: "demo",
    ///     about: "Shows its layers",
    ///     version: "1",
    ///     file: "/etc/demo.toml",
    ///     settings: &[row("addr", Holds::Text, ":80", "Where to listen")],
    ///     references: &[],
    ///     verbs: |command| command,
    /// };
    /// let env = |name: &str| (name == "CULVERT_ADDR").then(|| ":81".to_owned());
    ///
    /// let argv = ["demo", "-addr=:82"].map(Into::into);
    /// let layers = Layers::read(&PROGRAM, argv, &env)?;
    /// let addr = layers.get("addr").expect("it has a default");
    /// assert_eq!((addr.text.as_str(), addr.from.as_str()), (":82", "--addr"));
    ///
    /// let layers = Layers::read(&PROGRAM, ["demo".into()], &env)?;
    /// assert_eq!(layers.get("addr").expect("as above").from, "$CULVERT_ADDR");
    /// # Ok::<(), clap::Error>(())
    /// ```
    ///
    /// # Errors
    /// clap's: a flag that does not exist, or `--help`, `--version` and `reference`.
    pub fn read(
        program: &Program,
        argv: impl IntoIterator<Item = OsString>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, clap::Error> {
        let argv = argv
            .into_iter()
            .map(|arg| command::two_dashes(program, arg));
        let matches = program.command().try_get_matches_from(argv)?;
        if let Some(reference) = program.asked_reference(&matches) {
            return Err(reference);
        }
        let mut layers = Self {
            values: BTreeMap::new(),
            matches,
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let file = layers.file(program, env);
        for setting in program.settings {
            let value = layers
                .flag(setting)
                .or_else(|| layers.environment(setting, env))
                .or_else(|| file.get(setting.name).cloned())
                .or_else(|| setting.default_value());
            if let Some(value) = value {
                layers.values.insert(setting.name, value);
            }
        }
        Ok(layers)
    }

    /// The value of `name`, unless nobody set it and it has no default.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Sourced> {
        self.values.get(name).filter(|value| !value.text.is_empty())
    }

    fn flag(&mut self, setting: &Setting) -> Option<Sourced> {
        let name = setting.name;
        let direct = self
            .given(name)
            .map(|text| Sourced::set(text, format!("--{name}")));
        if !setting.has_file_twin() {
            return direct;
        }
        if direct.is_some() && setting.holds == Holds::Secret {
            self.warnings.push(format!(
                "--{name} on the command line is visible to every process of this host; use --{name}-file"
            ));
        }
        let twin = format!("{name}-file");
        let by_file = self.given(&twin);
        let by_file = by_file.and_then(|path| self.secret_file(&path, &format!("--{twin}")));
        self.one_of(direct.into_iter().chain(by_file).collect())
    }

    fn given(&self, id: &str) -> Option<String> {
        let on_line = self.matches.value_source(id) == Some(ValueSource::CommandLine);
        let all = on_line
            .then(|| self.matches.get_many::<String>(id))
            .flatten()?;
        Some(all.map(String::as_str).collect::<Vec<_>>().join(","))
    }

    fn environment(
        &mut self,
        setting: &Setting,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Option<Sourced> {
        let set = |name: &str| env(name).filter(|text| !text.is_empty());
        let mut found = Vec::new();
        let own = setting.env();
        for name in std::iter::once(own.as_str()).chain(setting.env_aliases.iter().copied()) {
            found.extend(set(name).map(|text| Sourced::set(text, format!("${name}"))));
            let twin = format!("{name}_FILE");
            if setting.has_file_twin()
                && let Some(path) = set(&twin)
            {
                found.extend(self.secret_file(&path, &format!("${twin}")));
            }
        }
        self.one_of(found)
    }

    /// Two names for one thing may both be set, but only to one value.
    fn one_of(&mut self, found: Vec<Sourced>) -> Option<Sourced> {
        let mut found = found.into_iter();
        let first = found.next()?;
        for other in found.filter(|other| other.text != first.text) {
            let (a, b) = (&first.from, &other.from);
            self.problems
                .push(format!("{a} and {b} are set to different values; keep one"));
        }
        Some(first)
    }

    fn secret_file(&mut self, path: &str, from: &str) -> Option<Sourced> {
        match file::read_bounded(Path::new(path)) {
            Ok(text) => Some(Sourced::set(text.trim(), format!("{from} ({path})"))),
            Err(why) => {
                self.problems
                    .push(format!("{from}: cannot read {path}: {why}"));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const SETTINGS: &[Setting] = &[
        row("addr", Holds::Text, ":8443", "Where to listen"),
        Setting {
            env_aliases: &["TOKEN"],
            ..row("token", Holds::Secret, "", "A secret")
        },
        row("insecure", Holds::Switch, "", "Trust anything"),
        row("hub", Holds::Many, "", "Addresses"),
    ];
    const PROGRAM: Program = Program {
        name: "p",
        about: "tests",
        version: "0",
        file: "/nonexistent/p.toml",
        settings: SETTINGS,
        references: &[("metrics", || "m\n".to_owned())],
        verbs: |command| command,
    };

    fn read(argv: &[&str], env: &[(&str, &str)]) -> Layers {
        let argv = std::iter::once("p")
            .chain(argv.iter().copied())
            .map(OsString::from);
        let env = |name: &str| {
            env.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        Layers::read(&PROGRAM, argv, &env).unwrap()
    }

    fn value(layers: &Layers, name: &str) -> Option<String> {
        layers.get(name).map(|value| value.text.clone())
    }

    #[test]
    fn flags_win_over_environment_over_file_over_default() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "addr = \":1\"\nhub = [\"a\", \"b\"]\ninsecure = true").unwrap();
        let path = file.path().to_str().unwrap();
        let env = [("CULVERT_ADDR", ":2"), ("CULVERT_CONFIG", path)];
        assert_eq!(value(&read(&["-addr=:3"], &env), "addr").unwrap(), ":3");
        let layers = read(&[], &env);
        assert_eq!(value(&layers, "addr").unwrap(), ":2");
        assert_eq!(value(&layers, "hub").unwrap(), "a,b");
        assert_eq!(value(&layers, "insecure").unwrap(), "true");
        let layers = read(&["--config", path], &[]);
        assert_eq!(layers.get("addr").unwrap().from, format!("{path}:1:1"));
        assert!(read(&[], &[]).get("addr").unwrap().defaulted);
        assert!(read(&[], &[]).get("token").is_none());
    }

    #[test]
    fn two_names_with_different_values_are_refused_by_both_names() {
        let layers = read(&[], &[("CULVERT_TOKEN", "a"), ("TOKEN", "b")]);
        let said = "$CULVERT_TOKEN and $TOKEN are set to different values; keep one";
        assert_eq!(layers.problems, [said]);
        assert!(
            read(&[], &[("CULVERT_TOKEN", "a"), ("TOKEN", "a")])
                .problems
                .is_empty()
        );
    }

    #[test]
    fn a_secret_comes_from_a_file_and_its_flag_is_warned_about() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "s3cret").unwrap();
        let path = file.path().to_str().unwrap();
        let layers = read(&["-token-file", path], &[]);
        assert_eq!(value(&layers, "token").unwrap(), "s3cret");
        assert!(layers.warnings.is_empty());
        let layers = read(&["--token", "s"], &[]);
        assert!(layers.warnings[0].contains("--token-file"));
        let layers = read(&[], &[("TOKEN_FILE", "/nonexistent/t")]);
        assert!(
            layers.problems[0].contains("/nonexistent/t"),
            "{:?}",
            layers.problems
        );
    }

    #[test]
    fn a_file_with_unknown_keys_names_their_lines() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "addr = \":1\"\n  adr = 1\nhub = {{ a = 1 }}").unwrap();
        let path = file.path().to_str().unwrap();
        let layers = read(&["--config", path], &[]);
        assert_eq!(layers.problems.len(), 2, "{:?}", layers.problems);
        assert!(layers.problems[0].starts_with(&format!("{path}:2:3: unknown key")));
        assert!(layers.problems[1].starts_with(&format!("{path}:3:1: hub takes")));
        let layers = read(&["--config", "/nonexistent/x"], &[]);
        assert!(layers.problems[0].contains("/nonexistent/x"));
    }

    #[test]
    fn switches_and_repeated_flags() {
        let layers = read(&["-insecure", "-hub", "a", "--hub=b"], &[]);
        assert_eq!(value(&layers, "insecure").unwrap(), "true");
        assert_eq!(value(&layers, "hub").unwrap(), "a,b");
        assert_eq!(
            value(&read(&["-insecure=false"], &[]), "insecure").unwrap(),
            "false"
        );
    }

    fn printed(what: &str) -> String {
        let argv = ["p", "reference", what].map(OsString::from);
        let said = Layers::read(&PROGRAM, argv, &|_| None).err().unwrap();
        assert_eq!(said.exit_code(), 0, "{said}");
        said.to_string()
    }

    #[test]
    fn the_reference_has_every_name() {
        assert_eq!(printed("metrics"), "m\n");
        let text = printed("config");
        assert!(
            text.contains(
                "| `--token`, `--token-file` | `CULVERT_TOKEN`, `TOKEN`, each with `_FILE` | `token` |"
            ),
            "{text}"
        );
    }
}
