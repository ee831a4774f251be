//! Settings as text, one by one; what is wrong is collected.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use culvert_config::Layers;
use culvert_telemetry::log::LogFormat;

use super::{DRAIN_GRACE_MAX, EngineConfig, PIPES_MAX, Problems, THREADS_MAX, units};

/// Reads one configuration.
pub struct Reader<'a> {
    /// What was given, and where.
    pub layers: &'a Layers,
    /// What is wrong with it.
    pub problems: &'a mut Problems,
}

impl Reader<'_> {
    /// The relay engine, for so many pairs.
    pub fn engine(&mut self, pairs_max: usize, cluster_pairs_max: usize) -> Option<EngineConfig> {
        let threads = self.number("engine-threads", 1..=THREADS_MAX as u64);
        let pipes = self.number("pipes", 0..=PIPES_MAX as u64);
        let spin = self.choice("spin", &[("auto", true), ("off", false)]);
        #[cfg(debug_assertions)]
        let drag_us = self.number("engine-drag-us", 0..=super::DRAG_US_MAX);
        Some(EngineConfig {
            threads: threads.map(|threads| threads as usize),
            pairs_max,
            cluster_pairs_max,
            pipes: pipes? as usize,
            spin: spin?,
            #[cfg(debug_assertions)]
            drag: Duration::from_micros(drag_us?.into()),
        })
    }

    /// What log lines look like.
    pub fn log_format(&mut self) -> Option<LogFormat> {
        self.choice(
            "log-format",
            &[
                ("auto", LogFormat::Auto),
                ("logfmt", LogFormat::Logfmt),
                ("json", LogFormat::Json),
            ],
        )
    }

    /// The value as it is written.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.layers.get(name).map(|value| value.text.as_str())
    }

    /// On or off.
    pub fn switch(&mut self, name: &'static str) -> bool {
        let on = self.choice(
            name,
            &[("true", true), ("false", false), ("1", true), ("0", false)],
        );
        on.unwrap_or(false)
    }

    /// The value as `parse` reads it.
    pub fn parse<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let value = self.layers.get(name)?;
        self.problems.take(&value.from, Some(parse(&value.text)))
    }

    /// A whole number in `range`.
    pub fn number(&mut self, name: &str, range: std::ops::RangeInclusive<u64>) -> Option<u32> {
        let found = self.parse(name, |text| units::number(text, range.clone()))?;
        u32::try_from(found).ok()
    }

    /// One of the words.
    pub fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Option<T> {
        self.parse(name, |text| {
            let found = choices.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
                format!("`{text}` is none of {}", words.join(", "))
            })
        })
    }

    /// An address and port.
    pub fn address(&mut self, name: &str) -> Option<SocketAddr> {
        self.parse(name, units::address)
    }

    /// How long a drain may take.
    pub fn drain_grace(&mut self) -> Option<Duration> {
        self.parse("drain-grace", |text| {
            let grace = units::duration(text)?;
            if grace > DRAIN_GRACE_MAX {
                return Err(format!("`{text}` is longer than 24h"));
            }
            Ok(grace)
        })
    }

    /// A file that can be read and is not empty.
    pub fn file(&mut self, name: &str) -> Option<PathBuf> {
        self.parse(name, |text| {
            let path = PathBuf::from(text);
            match std::fs::read(&path) {
                Ok(content) if content.is_empty() => Err(format!("{text} is empty")),
                Ok(_) => Ok(path),
                Err(why) => Err(format!("{text} cannot be read: {why}")),
            }
        })
    }
}
