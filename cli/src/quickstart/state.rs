//! The directory a quickstart lives in: certificates, store, sockets.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use culvert_net::tls::dev::DevCa;
use culvert_proto::token::TokenText;
use url::Url;

use crate::args::Quickstart;
use crate::error::{CliError, Result};

/// Longest path of a Unix socket, in bytes, with room for the file's name.
const DIR_BYTES_MAX: usize = 90;

/// An open state directory.
pub struct State {
    /// The directory, mode 0700.
    pub dir: PathBuf,
    /// Whether this run made it.
    pub new: bool,
}

impl State {
    /// Makes the directory and its certificates, or finds those of an earlier run.
    pub fn open(args: &Quickstart) -> Result<Self> {
        let dir = directory(args)?;
        if dir.as_os_str().len() > DIR_BYTES_MAX {
            let fix = "give a shorter --state-dir: Unix sockets stand in it";
            return Err(CliError::usage(
                "the state directory's path is too long",
                dir.display(),
                fix,
            ));
        }
        let new = !dir.join("ca.crt").exists();
        make(&dir)?;
        let state = Self { dir, new };
        if new {
            state.certificates().map_err(|why| state.unwritable(why))?;
        }
        Ok(state)
    }

    /// A directory below, made on first use.
    pub fn sub(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        make(&dir)?;
        Ok(dir)
    }

    /// Control's admin API.
    pub fn api_socket(&self) -> PathBuf {
        self.dir.join("api.sock")
    }

    /// The link from control to the data plane.
    pub fn link_socket(&self) -> PathBuf {
        self.dir.join("state.sock")
    }

    /// The agent's token.
    pub fn token_file(&self) -> PathBuf {
        self.dir.join("demo.token")
    }

    /// The agent's token of an earlier run.
    pub fn saved_token(&self) -> Option<TokenText> {
        let text = std::fs::read_to_string(self.token_file()).ok()?;
        TokenText::new(text.trim()).ok()
    }

    /// Keeps the token for the agent, readable by this user alone.
    pub fn save_token(&self, token: &str) -> Result<()> {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options
            .open(self.token_file())
            .and_then(|mut f| f.write_all(token.as_bytes()));
        written.map_err(|why| self.unwritable(why))
    }

    fn certificates(&self) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let ca = DevCa::new("culvert quickstart CA")?;
        ca.server(&["localhost", "127.0.0.1", "::1"])?
            .write(&self.dir, "server")?;
        // Last: its presence marks the directory as complete.
        ca.write(&self.dir)?;
        Ok(())
    }

    fn unwritable(&self, why: impl std::fmt::Display) -> CliError {
        unwritable(&self.dir, why)
    }
}

fn directory(args: &Quickstart) -> Result<PathBuf> {
    if let Some(dir) = &args.state_dir {
        return std::path::absolute(dir).map_err(|why| unwritable(dir, why));
    }
    let base = args.xdg_state_home.clone();
    let base = base.or_else(|| args.home.as_ref().map(|home| home.join(".local/state")));
    base.map(|base| base.join("culvert")).ok_or_else(|| {
        CliError::usage(
            "there is no home directory",
            "HOME is not set",
            "give --state-dir DIR",
        )
    })
}

fn make(dir: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(|why| unwritable(dir, why))
}

fn unwritable(dir: &Path, why: impl std::fmt::Display) -> CliError {
    let seen = format!("{}: {why}", dir.display());
    CliError::new(
        "state_dir",
        "the state directory cannot be used",
        seen,
        "cli",
        "give --state-dir DIR",
    )
}

/// What the agent reaches.
pub struct Target {
    /// `host:port`.
    pub authority: String,
    /// Without TLS.
    pub plain: bool,
}

impl Target {
    /// The host and port of a URL.
    pub fn of(url: &Url) -> Result<Self> {
        let plain = url.scheme() == "http";
        let host = url.host_str().filter(|_| plain || url.scheme() == "https");
        match (host, url.port_or_known_default()) {
            (Some(host), Some(port)) => Ok(Self {
                authority: format!("{host}:{port}"),
                plain,
            }),
            _ => {
                let fix = "give --target http://HOST:PORT or https://HOST:PORT";
                Err(CliError::usage("this is no target", url, fix))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_http_or_https() {
        let target = |url: &str| Target::of(&url.parse().unwrap());
        assert_eq!(
            target("http://localhost:3000/x").unwrap().authority,
            "localhost:3000"
        );
        assert!(!target("https://a.b").unwrap().plain);
        assert!(target("ftp://a.b:1").is_err());
        assert!(target("unix:/a").is_err());
    }
}
