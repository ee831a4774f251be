//! Settings of the relay engine.

use culvert_engine::IoEngine;

use super::reader::Reader;
use super::{EngineConfig, THREADS_MAX};

impl Reader {
    pub(super) fn engine(&mut self) -> EngineConfig {
        self.no_observer();
        EngineConfig {
            io: self.io_engine(),
            threads: self.number("engine-threads", 1, THREADS_MAX),
            spin: self.spin(),
        }
    }

    /// An agent runs in other people's clusters and loads no program into a kernel.
    fn no_observer(&mut self) {
        if let Some(value) = self.layers.get("ebpf").cloned() {
            match value.text.as_str() {
                "auto" | "off" => {}
                "require" => self.problem(
                    &value,
                    "cannot be had (not_in_agent): the observer runs in data planes; remove it",
                ),
                _ => self.problem(&value, "is none of auto, off, require"),
            }
        }
    }

    fn io_engine(&mut self) -> IoEngine {
        let text = self.text("io-engine");
        let choice = IoEngine::CHOICES.iter().find(|(word, _)| *word == text);
        match (choice, self.layers.get("io-engine").cloned()) {
            (None, Some(value)) => {
                self.problem(&value, "is none of auto, io_uring, epoll");
                IoEngine::Auto
            }
            (choice, _) => choice.map_or(IoEngine::Auto, |(_, engine)| *engine),
        }
    }

    fn spin(&mut self) -> bool {
        match (self.text("spin").as_str(), self.layers.get("spin").cloned()) {
            ("off", _) => false,
            ("auto", _) | (_, None) => true,
            (_, Some(value)) => {
                self.problem(&value, "is neither auto nor off");
                true
            }
        }
    }
}
