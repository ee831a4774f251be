//! One SQLite file, one writer, one process.

#[path = "sql/access.rs"]
mod access;
#[path = "sql/audit.rs"]
mod audit;
#[path = "sql/connect.rs"]
mod connect;
#[path = "sql/enrol.rs"]
mod enrol;
#[path = "sql/events.rs"]
mod events;
#[path = "sql/identity.rs"]
mod identity;
#[path = "sql/license.rs"]
mod license;
#[path = "sql/rows.rs"]
mod rows;

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use culvert_audit::Record;
use culvert_proto::id::Generation;
use culvert_proto::token::Digest;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use super::backend::{Backend, Claim, Done, News};
use super::lock::Lock;
use super::{CALL_DEADLINE, Loaded, Step, StoreError, Touch};
use crate::audit::{Entry, Filter, Recorded};
use crate::connect::ConnectRequest;
use crate::enrol::{AgentCa, EnrolToken};
use crate::identity::ApiToken;
use crate::license::LicenseRecord;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");

/// Reads at once.
const READERS_MAX: u32 = 2;
/// How long SQLite waits for a lock that another connection holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// What differs between the engines beneath the shared SQL.
mod db {
    pub(super) use sqlx::sqlite::{
        Sqlite as Db, SqliteConnection as Connection, SqlitePool as Pool,
    };

    use super::rows::Result;

    /// Takes the lock of the one writer at once.
    pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";
    /// The transaction holds the lock already.
    pub(super) const LOCKED_GENERATION: &str = "SELECT generation FROM hub";

    /// Rows of the audit log become visible in the order of their numbers: there is one writer.
    #[expect(
        clippy::unused_async,
        reason = "the other engine has something to wait for"
    )]
    pub(super) async fn in_order(_: &mut Connection) -> Result<()> {
        Ok(())
    }

    /// Bytes of the store that hold something.
    pub(super) async fn bytes(connection: &mut Connection) -> Result<u64> {
        let used: i64 = sqlx::query_scalar(
            "SELECT (page_count - freelist_count) * page_size
             FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        )
        .fetch_one(connection)
        .await?;
        Ok(u64::try_from(used).unwrap_or_default())
    }

    /// Gives the space of deleted rows back to the file system.
    pub(super) async fn reclaim(pool: &Pool) -> Result<()> {
        sqlx::query("PRAGMA incremental_vacuum(4096)")
            .fetch_all(pool)
            .await?;
        Ok(())
    }
}

/// The open file.
pub(super) struct Sqlite {
    pool: SqlitePool,
    /// Apart, so that a long read delays no decision.
    readers: SqlitePool,
    _lock: Lock,
}

impl Sqlite {
    pub(super) async fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = Lock::take(path)?;
        let place = path.display().to_string();
        let options = SqliteConnectOptions::new()
            .filename(path)
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
            .map_err(|why| StoreError::from_sqlx(&place, &why))?;
        let store = Self {
            pool,
            readers,
            _lock: lock,
        };
        store.migrate(&place).await?;
        if let Err(why) = reclaimable(&store.pool).await {
            let error = why.at(&place);
            tracing::warn!(%error, "pruned audit rows will not give their space back");
        }
        Ok(store)
    }

    async fn migrate(&self, place: &str) -> Result<(), StoreError> {
        match MIGRATIONS.run(&self.pool).await {
            Ok(()) => Ok(()),
            Err(MigrateError::VersionMissing(version) | MigrateError::VersionMismatch(version)) => {
                Err(StoreError::Newer {
                    path: place.into(),
                    schema: version,
                    written_by: rows::written_by(&self.pool).await,
                })
            }
            Err(MigrateError::Execute(why) | MigrateError::ExecuteMigration(why, _)) => {
                Err(StoreError::from_sqlx(place, &why))
            }
            Err(why) => Err(StoreError::Other {
                path: place.into(),
                why: why.to_string(),
            }),
        }
    }

    /// Epochs of sessions, for a copy.
    pub(super) async fn epochs(&self) -> rows::Result<Vec<(String, i64)>> {
        let rows = sqlx::query_as("SELECT subject, epoch FROM session_epochs")
            .fetch_all(&self.readers)
            .await?;
        Ok(rows)
    }

    /// Rows of the audit log behind `after`, oldest first, for a copy.
    pub(super) async fn audit_after(&self, after: i64, most: i64) -> rows::Result<Vec<Recorded>> {
        let rows = sqlx::query_as("SELECT * FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2")
            .bind(after)
            .bind(most)
            .fetch_all(&self.readers)
            .await?;
        Ok(rows)
    }
}

/// A store that an earlier version made is rewritten once, so that pruned rows
/// give their space back.
async fn reclaimable(pool: &SqlitePool) -> rows::Result<()> {
    const INCREMENTAL: i64 = 2;
    let mode: i64 = sqlx::query_scalar("PRAGMA auto_vacuum")
        .fetch_one(pool)
        .await?;
    if mode != INCREMENTAL {
        sqlx::raw_sql("PRAGMA auto_vacuum = INCREMENTAL; VACUUM")
            .execute(pool)
            .await?;
    }
    Ok(())
}

impl Backend for Sqlite {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn load(&self, now_ms: u64) -> Done<'_, Loaded> {
        Box::pin(rows::load(&self.pool, now_ms))
    }

    fn claim(&self, _: Generation) -> Done<'_, (Claim, News)> {
        Box::pin(async { Ok((Claim(None), News::Alone)) })
    }

    fn record<'a>(
        &'a self,
        _: Claim,
        steps: &'a [Step],
        generation: Generation,
        entries: &'a [Entry],
    ) -> Done<'a, ()> {
        Box::pin(async move {
            let mut lease = rows::Lease::take(&self.pool).await?;
            let mut transaction = lease.begin().await?;
            rows::record(&mut transaction, steps, generation, entries).await?;
            transaction.commit().await?;
            lease.keep();
            Ok(())
        })
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = Option<Generation>> + Send + '_>> {
        Box::pin(std::future::pending())
    }

    fn generation(&self) -> Done<'_, Generation> {
        Box::pin(rows::generation(&self.pool))
    }

    fn append_audit<'a>(&'a self, entry: &'a Entry) -> Done<'a, ()> {
        Box::pin(audit::append(&self.pool, entry))
    }

    fn take_events<'a>(&'a self, records: &'a [Record]) -> Done<'a, Vec<Recorded>> {
        Box::pin(events::take(&self.pool, records))
    }

    fn audit<'a>(&'a self, filter: &'a Filter) -> Done<'a, (Vec<Recorded>, u64)> {
        Box::pin(audit::read(&self.readers, filter))
    }

    fn audit_since<'a>(&'a self, filter: &'a Filter, seq: i64) -> Done<'a, Vec<Recorded>> {
        Box::pin(audit::since(&self.readers, filter, seq))
    }

    fn audit_newest(&self) -> Done<'_, i64> {
        Box::pin(audit::newest(&self.readers))
    }

    fn prune_audit(&self, before_unix_ms: Option<u64>, bytes_max: Option<u64>) -> Done<'_, u64> {
        Box::pin(audit::prune(&self.pool, before_unix_ms, bytes_max))
    }

    fn touch<'a>(&'a self, touched: &'a [Touch]) -> Done<'a, ()> {
        Box::pin(rows::touch(&self.pool, touched))
    }

    fn save_license<'a>(
        &'a self,
        record: &'a LicenseRecord,
        entry: Option<&'a Entry>,
    ) -> Done<'a, ()> {
        Box::pin(license::save(&self.pool, record, entry))
    }

    fn api_tokens(&self) -> Done<'_, Vec<ApiToken>> {
        Box::pin(identity::tokens(&self.readers))
    }

    fn api_token<'a>(&'a self, digest: &'a Digest) -> Done<'a, Option<ApiToken>> {
        Box::pin(identity::token_by_digest(&self.readers, digest))
    }

    fn add_api_token<'a>(
        &'a self,
        token: &'a ApiToken,
        most: u64,
        entry: &'a Entry,
    ) -> Done<'a, u64> {
        Box::pin(identity::add_token(&self.pool, token, most, Some(entry)))
    }

    fn remove_api_token<'a>(&'a self, id: &'a str, entry: &'a Entry) -> Done<'a, bool> {
        Box::pin(identity::remove_token(&self.pool, id, entry))
    }

    fn add_connect_request<'a>(
        &'a self,
        request: &'a ConnectRequest,
        most: (u64, u64),
    ) -> Done<'a, (u64, u64)> {
        Box::pin(connect::add(&self.pool, request, most))
    }

    fn connect_request<'a>(&'a self, id: &'a str) -> Done<'a, Option<ConnectRequest>> {
        Box::pin(connect::one(&self.readers, id))
    }

    fn connect_requests(&self, now_ms: u64) -> Done<'_, Vec<ConnectRequest>> {
        Box::pin(connect::open(&self.readers, now_ms))
    }

    fn session_epoch<'a>(&'a self, subject: &'a str) -> Done<'a, u64> {
        Box::pin(identity::epoch(&self.readers, subject))
    }

    fn ended_sessions(&self, since_unix_ms: u64) -> Done<'_, Vec<(String, u64)>> {
        Box::pin(identity::ended(&self.readers, since_unix_ms))
    }

    fn agent_cas(&self) -> Done<'_, Vec<AgentCa>> {
        Box::pin(enrol::cas(&self.readers))
    }

    fn agent_ca_signed<'a>(&'a self, id: &'a str, until_unix_s: u64) -> Done<'a, bool> {
        Box::pin(enrol::ca_signed(&self.pool, id, until_unix_s))
    }

    fn add_enrol_token<'a>(
        &'a self,
        token: &'a EnrolToken,
        most: u64,
        entry: &'a Entry,
    ) -> Done<'a, u64> {
        Box::pin(enrol::add_token(&self.pool, token, most, entry))
    }

    fn take_enrol_token<'a>(&'a self, digest: &'a Digest) -> Done<'a, Option<EnrolToken>> {
        Box::pin(enrol::take_token(&self.pool, digest))
    }

    fn prune_enrol_tokens(&self, now_ms: u64) -> Done<'_, u64> {
        Box::pin(enrol::prune_tokens(&self.pool, now_ms))
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            self.readers.close().await;
            self.pool.close().await;
        })
    }
}
