//! What `culvert login` keeps: who to be, and where. One file, for its owner alone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{CliError, Result};

/// The cookie that control gives.
pub const COOKIE: &str = "__Host-culvert_session";
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A login.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The API, as `--api` takes it.
    pub api: String,
    /// The CA of an `https://` one.
    pub api_ca: Option<PathBuf>,
    /// What is shown there. No `Debug`: it holds a secret.
    pub shown: Shown,
}

/// What is shown to control.
#[derive(Clone, PartialEq, Eq)]
pub enum Shown {
    /// A bearer token.
    Bearer(String),
    /// A person's session.
    Session {
        /// The sealed cookie.
        cookie: String,
        /// Whence control lets it change something.
        origin: String,
    },
}

impl Login {
    /// What the file holds; `None` where there is none.
    ///
    /// # Errors
    /// When others may read it, or it is none of ours.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(unusable(path, &why)),
        };
        let mode = file.metadata().map_err(|why| unusable(path, &why))?.mode();
        if mode & 0o077 != 0 {
            let seen = format!("{}: mode {:04o}", path.display(), mode & 0o777);
            let fix = format!("chmod 600 {}, or culvert login again", path.display());
            return Err(CliError::usage("others can read the login", seen, &fix));
        }
        let mut text = String::new();
        let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
        read.map_err(|why| unusable(path, &why))?;
        match Self::parse(&text) {
            Some(login) => Ok(Some(login)),
            None => Err(unusable(path, &"it is no login, or damaged")),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let field = |name: &str| value[name].as_str().map(str::to_owned);
        let shown = match (field("token"), field("cookie")) {
            (Some(token), None) => Shown::Bearer(token),
            (None, Some(cookie)) => Shown::Session {
                cookie,
                origin: field("origin")?,
            },
            _ => return None,
        };
        Some(Self {
            api: field("api")?,
            api_ca: field("api_ca").map(PathBuf::from),
            shown,
        })
    }

    /// Keeps it: 0600, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, path: &Path) -> Result<()> {
        let mut value = json!({"api": self.api, "api_ca": self.api_ca});
        match &self.shown {
            Shown::Bearer(token) => value["token"] = json!(token),
            Shown::Session { cookie, origin } => {
                value["cookie"] = json!(cookie);
                value["origin"] = json!(origin);
            }
        }
        write(path, &format!("{value:#}\n")).map_err(|why| unusable(path, &why))
    }
}

/// Takes a login away; whether there was one.
///
/// # Errors
/// When it cannot be removed.
pub fn forget(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(why) => Err(unusable(path, &why)),
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    if let Some(directory) = directory {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory)?;
    }
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    match fs::remove_file(&fresh) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

fn unusable(path: &Path, why: &impl std::fmt::Display) -> CliError {
    CliError::usage(
        "the login cannot be used",
        format!("{}: {why}", path.display()),
        "culvert logout, then culvert login; or name another --login-file",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_login_comes_back_and_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/login.json");
        assert!(Login::read(&path).unwrap().is_none());
        let bearer = Login {
            api: "https://hub.test".to_owned(),
            api_ca: Some("/ca.crt".into()),
            shown: Shown::Bearer("cvp_x".to_owned()),
        };
        let session = Login {
            api_ca: None,
            shown: Shown::Session {
                cookie: "c".to_owned(),
                origin: "https://hub.test".to_owned(),
            },
            ..bearer.clone()
        };
        for login in [bearer, session] {
            login.keep(&path).unwrap();
            assert!(Login::read(&path).unwrap() == Some(login));
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let mode = fs::metadata(path.parent().unwrap())
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o700);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let said = Login::read(&path).err().unwrap();
        assert!(said.fix.contains("chmod 600"), "{said}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for bad in ["", "{}", "{\"api\":\"x\",\"cookie\":\"y\"}", "[1]"] {
            fs::write(&path, bad).unwrap();
            assert!(Login::read(&path).is_err(), "{bad}");
        }
        assert!(forget(&path).unwrap() && !forget(&path).unwrap());
    }
}
