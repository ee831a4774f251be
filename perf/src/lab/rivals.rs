//! Rivals that no distribution has: built once by cargo, or given by path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{ENTRY_PORT, Host, Lab, Running, tunnel};
use crate::testbed::Spawn;

/// Where their programs lie.
#[derive(Debug, Clone, Default)]
pub struct Rivals {
    /// Built by `cargo xtask perf --rivals`.
    pub directory: Option<PathBuf>,
    /// `--rival-bin NAME=PATH`.
    pub given: BTreeMap<String, PathBuf>,
}

impl Rivals {
    /// The program called `name`.
    ///
    /// # Errors
    /// When nobody built or gave it.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let built = self.directory.as_ref().map(|place| place.join(name));
        self.given
            .get(name)
            .cloned()
            .or(built)
            .filter(|path| path.exists())
            .with_context(|| {
                format!(
                    "{name} is not there: cargo xtask perf --rivals builds rathole and bore; \
                     others are given by --rival-bin {name}=PATH"
                )
            })
    }

    /// Reads `NAME=PATH`.
    ///
    /// # Errors
    /// When there is no `=` or no such file.
    pub fn parse(text: &str) -> Result<(String, PathBuf)> {
        let (name, path) = text.split_once('=').context("wanted: NAME=PATH")?;
        ensure!(Path::new(path).exists(), "{path} does not exist");
        Ok((name.to_owned(), PathBuf::from(path)))
    }
}

/// A tunnel whose programs are given; its command lines stand in the scenario.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// In files and plots.
    pub name: String,
    /// Program (a name of `--rival-bin`) and arguments of the first hop.
    pub hub: Vec<String>,
    /// Of the second.
    pub agent: Vec<String>,
}

impl Given {
    /// Programs that nobody has given.
    pub fn lacks(&self, lab: &Lab) -> Option<String> {
        [&self.hub, &self.agent]
            .into_iter()
            .filter_map(|line| lab.rivals.path(line.first()?).err())
            .map(|error| format!("{error:#}"))
            .next()
    }

    /// Starts both ends.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(&self, lab: &Lab) -> Result<Running> {
        let spawn = |line: &[String]| -> Result<Spawn> {
            let (program, arguments) = line.split_first().context("an empty command line")?;
            let filled = arguments.iter().map(|word| self.filled(lab, word));
            Ok(Spawn::new(lab.rivals.path(program)?)
                .args(filled)
                .env("TOKIO_WORKER_THREADS", "1")
                .env("GOMAXPROCS", "1"))
        };
        tunnel::start(lab, spawn(&self.hub)?, || spawn(&self.agent))
    }

    fn filled(&self, lab: &Lab, word: &str) -> String {
        let service = lab.service(Host::Site);
        word.replace("{hub}", &lab.address(Host::Hub, Host::Site).to_string())
            .replace("{entry_port}", &ENTRY_PORT.to_string())
            .replace("{service_host}", &service.ip().to_string())
            .replace("{service_port}", &service.port().to_string())
    }
}
