//! The configuration file: TOML, flat, unknown keys refused with their place.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use crate::{FILE_BYTES_MAX, Layers, Program, Sourced};

type Values = BTreeMap<&'static str, Sourced>;

impl Layers {
    pub(crate) fn file(
        &mut self,
        program: &Program,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Values {
        let asked = self.matches.get_one::<String>("config").cloned();
        let asked = asked.or_else(|| env("CULVERT_CONFIG").filter(|path| !path.is_empty()));
        let path = asked.as_deref().unwrap_or(program.file);
        match read_bounded(Path::new(path)) {
            Ok(text) => self.parse(program, path, &text),
            Err(why) => {
                if asked.is_some() || why.kind() != std::io::ErrorKind::NotFound {
                    self.problems
                        .push(format!("configuration file {path}: {why}"));
                }
                Values::new()
            }
        }
    }

    fn parse(&mut self, program: &Program, path: &str, text: &str) -> Values {
        let mut values = Values::new();
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
            let twin = name.strip_suffix("-file");
            let setting = program.settings.iter().find(|setting| {
                setting.name == name || (setting.has_file_twin() && Some(setting.name) == twin)
            });
            let (Some(setting), false) = (setting, key.contains('-')) else {
                self.problems.push(format!("{at}: unknown key {key:?}"));
                continue;
            };
            let Some(text) = plain(value.get_ref()) else {
                let takes = "takes a text, a number, true, false or a list of texts";
                self.problems.push(format!("{at}: {key} {takes}"));
                continue;
            };
            let value = if setting.name == name {
                Some(Sourced::set(text, at))
            } else {
                self.secret_file(&text, &at)
            };
            let all = values
                .remove(setting.name)
                .into_iter()
                .chain(value)
                .collect();
            if let Some(value) = self.one_of(all) {
                values.insert(setting.name, value);
            }
        }
        values
    }
}

fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Boolean(on) => Some(on.to_string()),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| item.get_ref().as_str());
            Some(items.collect::<Option<Vec<_>>>()?.join(","))
        }
        _ => None,
    }
}

/// Line and column of a byte, from 1.
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

pub(crate) fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}
