//! What can go wrong with the store, and what to do about it.

use std::io;

use sqlx::postgres::PgDatabaseError;

/// Why the store cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system is full.
    #[error("store {path}: the disk is full; free space on its file system")]
    Full {
        /// The store: a file, or a server and its database.
        path: Box<str>,
    },
    /// The file or its directory cannot be written.
    #[error(
        "store {path}: the file or its directory is read-only or not writable by this user; {fix}"
    )]
    ReadOnly {
        /// The store: a file, or a server and its database.
        path: Box<str>,
        /// What to do.
        fix: &'static str,
    },
    /// The directory does not exist.
    #[error("store {path}: its directory does not exist; make it, or name another with --db-dsn")]
    NoDirectory {
        /// The store: a file, or a server and its database.
        path: Box<str>,
    },
    /// A later version of culvert wrote it.
    #[error(
        "store {path}: schema {schema} was written by culvert {written_by}, which is newer than \
         this {}; run that version, or restore the copy made before the upgrade",
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The store: a file, or a server and its database.
        path: Box<str>,
        /// The first schema version that is not known here.
        schema: i64,
        /// The version that wrote it.
        written_by: String,
    },
    /// Another process has it.
    #[error("store {path}: another culvert-control holds it; stop that one first")]
    InUse {
        /// The store: a file, or a server and its database.
        path: Box<str>,
    },
    /// It is no store, or damaged.
    #[error("store {path}: damaged, or no store ({why}); restore it from a copy")]
    Damaged {
        /// The store: a file, or a server and its database.
        path: Box<str>,
        /// What was seen.
        why: String,
    },
    /// The server cannot be reached, or lets this user not in.
    #[error("store {path}: the server cannot be reached ({why}); check it and --db-dsn")]
    Unreachable {
        /// The store: a file, or a server and its database.
        path: Box<str>,
        /// What was seen.
        why: String,
    },
    /// The database holds a hub already.
    #[error("store {path}: holds a hub already ({why}); name an empty database")]
    Taken {
        /// The store: a file, or a server and its database.
        path: Box<str>,
        /// What was seen.
        why: String,
    },
    /// No answer in time.
    #[error("store {path}: no answer within 2 s; is its file system or its server stuck?")]
    Slow {
        /// The store: a file, or a server and its database.
        path: Box<str>,
    },
    /// Anything else.
    #[error("store {path}: {why}")]
    Other {
        /// The store: a file, or a server and its database.
        path: Box<str>,
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

/// What a query or a row is wrong with.
pub(super) enum RowError {
    Sqlx(sqlx::Error),
    Damaged(String),
    /// There is a hub already.
    Taken(String),
}

impl From<sqlx::Error> for RowError {
    fn from(why: sqlx::Error) -> Self {
        Self::Sqlx(why)
    }
}

impl RowError {
    pub(super) fn at(self, place: &str) -> StoreError {
        let path = place.into();
        match self {
            Self::Sqlx(why) => StoreError::from_sqlx(place, &why),
            Self::Damaged(why) => StoreError::Damaged { path, why },
            Self::Taken(why) => StoreError::Taken { path, why },
        }
    }
}

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
            Self::Unreachable { .. } => "store_unreachable",
            Self::Taken { .. } => "store_taken",
            Self::Slow { .. } => "store_slow",
            Self::Other { .. } => "store_error",
        }
    }

    pub(super) fn from_sqlx(path: &str, why: &sqlx::Error) -> Self {
        let own = || Box::<str>::from(path);
        let code = match why {
            sqlx::Error::Database(database) => {
                let server = database.try_downcast_ref::<PgDatabaseError>();
                if let Some(error) = server {
                    return Self::from_server(path, error);
                }
                database.code()
            }
            sqlx::Error::Io(why) if is_of_server(path) => {
                let why = why.to_string();
                return Self::Unreachable { path: own(), why };
            }
            sqlx::Error::Io(why) => return Self::from_io(path, why),
            sqlx::Error::Tls(why) => {
                let why = format!("TLS: {why}");
                return Self::Unreachable { path: own(), why };
            }
            sqlx::Error::PoolTimedOut => {
                let why = "no connection became free in time".to_owned();
                return Self::Unreachable { path: own(), why };
            }
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

    /// By SQLSTATE, as PostgreSQL's manual lists them.
    fn from_server(path: &str, error: &PgDatabaseError) -> Self {
        let (path, why) = (path.into(), error.message().to_owned());
        match error.code() {
            "53100" => Self::Full { path },
            "25006" => Self::ReadOnly {
                path,
                fix: "is this a standby? name the primary with --db-dsn",
            },
            "42501" => Self::ReadOnly {
                path,
                fix: "grant this user CREATE on the schema",
            },
            code if code.starts_with("28")
                || code.starts_with("08")
                || code.starts_with("57P")
                || matches!(code, "3D000" | "53300") =>
            {
                Self::Unreachable { path, why }
            }
            _ => Self::Other { path, why },
        }
    }

    pub(super) fn from_io(path: &str, why: &io::Error) -> Self {
        let path = path.into();
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

/// A place of a server is written as a URL.
fn is_of_server(place: &str) -> bool {
    place.starts_with("postgres://")
}
