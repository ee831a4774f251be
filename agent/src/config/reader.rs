//! Texts of settings to values; every problem is kept, none ends the search.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use culvert_config::{Layers, Sourced};
use culvert_net::tls::{ClientTls, ClientTlsOptions};

/// The layers, and helpers that note what is wrong with a value.
pub(super) struct Reader {
    pub layers: Layers,
    /// A join string was given, good or not.
    pub join_asked: bool,
}

impl Reader {
    pub(super) fn problem(&mut self, value: &Sourced, why: impl Display) {
        self.layers
            .problems
            .push(format!("{}: {:?} {why}", value.from, value.text));
    }

    /// For values that must not be shown.
    pub(super) fn secret_problem(&mut self, value: &Sourced, why: impl Display) {
        self.layers.problems.push(format!("{}: {why}", value.from));
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.layers
            .get(name)
            .map(|value| value.text.clone())
            .unwrap_or_default()
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.layers
            .get(name)
            .map(|value| PathBuf::from(&value.text))
    }

    pub(super) fn switch(&mut self, name: &str) -> bool {
        let Some(value) = self.layers.get(name).cloned() else {
            return false;
        };
        match value.text.as_str() {
            "true" | "1" => true,
            "false" | "0" => false,
            _ => {
                self.problem(&value, "is neither true nor false");
                false
            }
        }
    }

    pub(super) fn number<N: FromStr + PartialOrd + Display + Copy>(
        &mut self,
        name: &str,
        min: N,
        max: N,
    ) -> N {
        let Some(value) = self.layers.get(name).cloned() else {
            return min;
        };
        match value.text.parse() {
            Ok(number) if number >= min && number <= max => number,
            _ => {
                self.problem(&value, format_args!("is not a number from {min} to {max}"));
                min
            }
        }
    }

    pub(super) fn list<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Vec<T> {
        let Some(value) = self.layers.get(name).cloned() else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for item in value
            .text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            match parse(item) {
                Ok(item) => out.push(item),
                Err(why) => self.problem(&value, format_args!("holds {item:?}, which {why}")),
            }
        }
        out
    }

    pub(super) fn duration(&mut self, name: &str, min: Duration, max: Duration) -> Duration {
        let Some(value) = self.layers.get(name).cloned() else {
            return min;
        };
        match parse_duration(&value.text) {
            Some(time) if time >= min && time <= max => time,
            _ => {
                self.problem(
                    &value,
                    format_args!(
                        "is not a time from {min:?} to {max:?}; write 500ms, 30s, 5m or 1h"
                    ),
                );
                min
            }
        }
    }

    pub(super) fn bytes(&mut self, name: &str, min: u64) -> u64 {
        let Some(value) = self.layers.get(name).cloned() else {
            return min;
        };
        match parse_bytes(&value.text) {
            Some(bytes) if bytes >= min => bytes,
            _ => {
                let why = format_args!("is not a size from {min} bytes; write 150MiB or 1GiB");
                self.problem(&value, why);
                min
            }
        }
    }

    /// A missing or bad file is a start error, never weaker authentication.
    pub(super) fn try_tls(&mut self, what: &str, options: &ClientTlsOptions) {
        if let Err(why) = ClientTls::load(options.clone()) {
            self.layers.problems.push(format!("{what}: {why}"));
        }
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "" | "B" => 1,
        "KiB" | "Ki" => 1 << 10,
        "MiB" | "Mi" => 1 << 20,
        "GiB" | "Gi" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}
