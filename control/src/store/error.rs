//! What can go wrong with the store, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why the store cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system is full.
    #[error("store {path}: the disk is full; free space on its file system")]
    Full {
        /// The store's file.
        path: PathBuf,
    },
    /// The file or its directory cannot be written.
    #[error(
        "store {path}: the file or its directory is read-only or not writable by this user; {fix}"
    )]
    ReadOnly {
        /// The store's file.
        path: PathBuf,
        /// What to do.
        fix: &'static str,
    },
    /// The directory does not exist.
    #[error("store {path}: its directory does not exist; make it, or name another with --db-dsn")]
    NoDirectory {
        /// The store's file.
        path: PathBuf,
    },
    /// A later version of culvert wrote it.
    #[error(
        "store {path}: schema {schema} was written by culvert {written_by}, which is newer than \
         this {}; run that version, or restore the copy made before the upgrade",
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The store's file.
        path: PathBuf,
        /// The first schema version that is not known here.
        schema: i64,
        /// The version that wrote it.
        written_by: String,
    },
    /// Another process has it.
    #[error("store {path}: another culvert-control holds it; stop that one first")]
    InUse {
        /// The store's file.
        path: PathBuf,
    },
    /// It is no SQLite file, or damaged.
    #[error("store {path}: not a sound SQLite file ({why}); restore it from a copy")]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// What was seen.
        why: String,
    },
    /// No answer in time.
    #[error("store {path}: no answer within 2 s; is its file system stuck?")]
    Slow {
        /// The store's file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("store {path}: {why}")]
    Other {
        /// The store's file.
        path: PathBuf,
        /// What was seen.
        why: String,
    },
}

/// The primary result codes of SQLite that are told apart.
const SQLITE_READONLY: u32 = 8;
const SQLITE_CORRUPT: u32 = 11;
const SQLITE_FULL: u32 = 13;
const SQLITE_CANTOPEN: u32 = 14;
const SQLITE_NOTADB: u32 = 26;

const CHECK_OWNER: &str = "check owner and mode, or name another with --db-dsn";

impl StoreError {
    /// A stable word for it, as in the API's answers.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Full { .. } => "store_full",
            Self::ReadOnly { .. } => "store_read_only",
            Self::NoDirectory { .. } => "store_no_directory",
            Self::Newer { .. } => "store_newer",
            Self::InUse { .. } => "store_in_use",
            Self::Damaged { .. } => "store_damaged",
            Self::Slow { .. } => "store_slow",
            Self::Other { .. } => "store_error",
        }
    }

    pub(super) fn from_sqlx(path: &Path, why: &sqlx::Error) -> Self {
        let own = || path.to_owned();
        let code = match why {
            sqlx::Error::Database(database) => database.code(),
            sqlx::Error::Io(why) => return Self::from_io(path, why),
            _ => None,
        };
        let primary = code
            .and_then(|code| code.parse::<u32>().ok())
            .map(|code| code & 0xff);
        match primary {
            Some(SQLITE_FULL) => Self::Full { path: own() },
            Some(SQLITE_READONLY | SQLITE_CANTOPEN) => Self::ReadOnly {
                path: own(),
                fix: CHECK_OWNER,
            },
            Some(SQLITE_CORRUPT | SQLITE_NOTADB) => Self::Damaged {
                path: own(),
                why: why.to_string(),
            },
            _ => Self::Other {
                path: own(),
                why: why.to_string(),
            },
        }
    }

    pub(super) fn from_io(path: &Path, why: &io::Error) -> Self {
        let path = path.to_owned();
        match why.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly {
                path,
                fix: CHECK_OWNER,
            },
            io::ErrorKind::NotFound => Self::NoDirectory { path },
            _ => Self::Other {
                path,
                why: why.to_string(),
            },
        }
    }
}
