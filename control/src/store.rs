//! Durable state: one SQLite file, one writer.
//!
//! Everything is read once at start; afterwards the store only records what
//! was decided. Each change raises the generation in the same transaction.

mod access;
mod audit;
mod error;
mod license;
mod lock;
mod rows;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_proto::id::{ClusterId, Generation};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::time::timeout;

use crate::audit::{Entry, Filter, Recorded};
use crate::cluster::Cluster;
use crate::license::LicenseRecord;

pub use error::StoreError;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// A call that takes longer fails.
const CALL_DEADLINE: Duration = Duration::from_secs(2);
/// Reads at once.
const READERS_MAX: u32 = 2;
/// How long SQLite waits for a lock that another connection holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dsn(PathBuf);

/// The open store. One process at a time holds it.
pub struct Store {
    pool: SqlitePool,
    /// Apart, so that a long read delays no decision.
    readers: SqlitePool,
    path: PathBuf,
    _lock: lock::Lock,
}

/// A change from one generation to the next.
#[derive(Clone)]
pub enum Step {
    /// The cluster as it is now.
    Put(Arc<Cluster>),
    /// It is gone.
    Remove(ClusterId),
}

/// What the store held when it was opened.
pub struct Loaded {
    /// Names this hub; made with the store.
    pub hub_id: String,
    /// The generation published last.
    pub generation: Generation,
    /// Every cluster, by id.
    pub clusters: Vec<Cluster>,
    /// What is kept of the licence.
    pub license: LicenseRecord,
}

/// When a credential or a cluster was last used, for [`Store::touch`].
pub struct Touch {
    /// The cluster.
    pub cluster: ClusterId,
    /// When an agent was last connected, if one was.
    pub last_connected_unix_ms: Option<u64>,
    /// Ids of tokens and when they were last used.
    pub tokens: Vec<(String, u64)>,
}

impl Step {
    /// Which cluster changes.
    #[must_use]
    pub fn id(&self) -> &ClusterId {
        match self {
            Self::Put(cluster) => &cluster.id,
            Self::Remove(id) => id,
        }
    }
}

impl Dsn {
    /// Reads `sqlite:path`, `sqlite://path`, `sqlite:///path` or a bare path.
    ///
    /// # Errors
    /// A sentence for people. It repeats no more than the scheme, since a DSN may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let path = match text.split_once(':') {
            Some(("sqlite", rest)) => rest.strip_prefix("//").unwrap_or(rest),
            Some((scheme @ ("postgres" | "postgresql"), _)) => {
                return Err(format!(
                    "{scheme}: this version stores in SQLite only; use sqlite:PATH"
                ));
            }
            Some((scheme, rest)) if rest.starts_with("//") => {
                return Err(format!("{scheme}: unknown scheme; use sqlite:PATH"));
            }
            _ if text.contains("dbname=") || text.contains("host=") => {
                return Err(
                    "a libpq DSN; this version stores in SQLite only; use sqlite:PATH".to_owned(),
                );
            }
            _ => text,
        };
        if path.is_empty() || path == ":memory:" {
            return Err("names no file; use sqlite:PATH".to_owned());
        }
        if path.contains('?') {
            return Err("has parameters; only sqlite:PATH is understood".to_owned());
        }
        Ok(Self(path.into()))
    }

    /// The store that stands in `dir` unless another is named.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self(dir.join("control.db"))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Store {
    /// Opens or makes the store, brings its schema up to date and reads it.
    ///
    /// # Errors
    /// [`StoreError`], naming the file and what to do.
    pub async fn open(dsn: &Dsn, now_ms: u64) -> Result<(Self, Loaded), StoreError> {
        let path = dsn.path().to_owned();
        let lock = lock::Lock::take(&path)?;
        let fail = |why: sqlx::Error| StoreError::from_sqlx(&path, &why);
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(CALL_DEADLINE)
            .connect_lazy_with(options.clone().read_only(true));
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CALL_DEADLINE)
            .connect_with(options)
            .await
            .map_err(fail)?;
        let store = Self {
            pool,
            readers,
            path: path.clone(),
            _lock: lock,
        };
        store.migrate().await?;
        if let Err(why) = audit::reclaimable(&store.pool).await {
            let error = why.at(&path);
            tracing::warn!(%error, "pruned audit rows will not give their space back");
        }
        let loaded = rows::load(&store.pool, now_ms)
            .await
            .map_err(|why| why.at(&path))?;
        Ok((store, loaded))
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        match MIGRATIONS.run(&self.pool).await {
            Ok(()) => Ok(()),
            Err(MigrateError::VersionMissing(version) | MigrateError::VersionMismatch(version)) => {
                Err(StoreError::Newer {
                    path: self.path.clone(),
                    schema: version,
                    written_by: rows::written_by(&self.pool).await,
                })
            }
            Err(MigrateError::Execute(why) | MigrateError::ExecuteMigration(why, _)) => {
                Err(StoreError::from_sqlx(&self.path, &why))
            }
            Err(why) => Err(StoreError::Other {
                path: self.path.clone(),
                why: why.to_string(),
            }),
        }
    }

    /// Records `generation`: what changed, and the rows that say who changed it.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was recorded.
    pub async fn record(
        &self,
        steps: &[Step],
        generation: Generation,
        entries: &[Entry],
    ) -> Result<(), StoreError> {
        self.bounded(rows::record(&self.pool, steps, generation, entries))
            .await
    }

    /// Records a row of the audit log that belongs to no change.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn append_audit(&self, entry: &Entry) -> Result<(), StoreError> {
        self.bounded(audit::append(&self.pool, entry)).await
    }

    /// Rows of the audit log, newest first, and how many match.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit(&self, filter: &Filter) -> Result<(Vec<Recorded>, u64), StoreError> {
        self.bounded(audit::read(&self.readers, filter)).await
    }

    /// Deletes some audit rows that are older than `before_unix_ms`, or else the
    /// oldest while the store holds more than `bytes_max`. 0 = nothing is left to delete.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn prune_audit(
        &self,
        before_unix_ms: Option<u64>,
        bytes_max: Option<u64>,
    ) -> Result<u64, StoreError> {
        self.bounded(audit::prune(&self.pool, before_unix_ms, bytes_max))
            .await
    }

    /// Records when clusters and tokens were last used. Not part of the history.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn touch(&self, touched: &[Touch]) -> Result<(), StoreError> {
        self.bounded(rows::touch(&self.pool, touched)).await
    }

    /// Records what is kept of the licence, with the row that says why.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn save_license(
        &self,
        record: &LicenseRecord,
        entry: Option<&Entry>,
    ) -> Result<(), StoreError> {
        self.bounded(license::save(&self.pool, record, entry)).await
    }

    /// Closes the file; what was recorded is on disk already.
    pub async fn close(&self) {
        self.readers.close().await;
        self.pool.close().await;
    }

    /// The generation on disk, for a writer that does not know whether its last
    /// change was recorded.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn generation(&self) -> Result<Generation, StoreError> {
        self.bounded(rows::generation(&self.pool)).await
    }

    async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, rows::RowError>>,
    ) -> Result<T, StoreError> {
        match timeout(CALL_DEADLINE, call).await {
            Ok(done) => done.map_err(|why| why.at(&self.path)),
            Err(_) => Err(StoreError::Slow {
                path: self.path.clone(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_a_dsn() {
        for text in ["/a/b.db", "sqlite:/a/b.db", "sqlite:///a/b.db"] {
            assert_eq!(
                Dsn::parse(text).unwrap().path(),
                Path::new("/a/b.db"),
                "{text}"
            );
        }
        assert_eq!(
            Dsn::parse("sqlite://b.db").unwrap().path(),
            Path::new("b.db")
        );
        for text in [
            "",
            "sqlite:",
            "postgres://u:secret@h/d",
            "mysql://x",
            "host=a password=secret",
        ] {
            let why = Dsn::parse(text).unwrap_err();
            assert!(!why.contains("secret"), "{why}");
        }
    }
}
