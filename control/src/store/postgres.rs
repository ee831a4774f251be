//! A PostgreSQL database, shared by any number of control processes. Who records
//! holds the lock of the hub's row; all others hear of it by NOTIFY and read the
//! clusters that changed.

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
mod take;

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use culvert_audit::Record;
use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::token::Digest;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use tokio::sync::Mutex;

use super::backend::{Backend, Claim, Done, News};
use super::dsn::Params;
use super::error::RowError;
use super::{CALL_DEADLINE, Loaded, Step, StoreError, Touch};
use crate::audit::{Entry, Filter, Recorded};
use crate::connect::ConnectRequest;
use crate::enrol::{AgentCa, EnrolToken};
use crate::identity::ApiToken;
use crate::license::LicenseRecord;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/postgres");

/// Connections at once, the listener's apart.
const CONNECTIONS_MAX: u32 = 8;
/// One attempt to connect, and a server that starts.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Where changes are announced.
const CHANNEL: &str = "culvert_changed";
/// Generations that a process may be behind and read on; kept that long.
const HISTORY_MAX: i64 = 10_000;
/// Changed clusters that are read one by one.
const READ_EACH_MAX: usize = 1_000;
/// Rest after the listener's connection was lost.
const LOST: Duration = Duration::from_secs(1);

/// What differs between the engines beneath the shared SQL.
mod db {
    pub(super) use sqlx::postgres::{PgConnection as Connection, PgPool as Pool, Postgres as Db};

    use super::rows::Result;

    pub(super) const BEGIN: &str = "BEGIN";
    /// Waits for whoever records a change.
    pub(super) const LOCKED_GENERATION: &str = "SELECT generation FROM hub FOR UPDATE";

    /// Key of the lock that who writes the audit log holds to the end of its transaction.
    const AUDIT_LOCK: i64 = 0x4355_4c41_5544;

    /// Rows of the audit log become visible in the order of their numbers, whoever writes
    /// them: who reads on from the last one misses none.
    pub(super) async fn in_order(connection: &mut Connection) -> Result<()> {
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(AUDIT_LOCK)
            .execute(connection)
            .await?;
        Ok(())
    }

    /// What the rows of the audit log hold, from the mean of the newest thousand.
    pub(super) async fn bytes(connection: &mut Connection) -> Result<u64> {
        let used: i64 = sqlx::query_scalar(
            "SELECT coalesce((SELECT count(*) FROM audit) * (SELECT avg(pg_column_size(newest))
                 FROM (SELECT * FROM audit ORDER BY seq DESC LIMIT 1000) AS newest), 0)::bigint",
        )
        .fetch_one(connection)
        .await?;
        Ok(u64::try_from(used).unwrap_or_default())
    }

    /// The server's own autovacuum does it.
    #[expect(
        clippy::unused_async,
        reason = "the other engine has something to wait for"
    )]
    pub(super) async fn reclaim(_: &Pool) -> Result<()> {
        Ok(())
    }
}

/// The database.
pub(super) struct Postgres {
    pool: PgPool,
    listener: Mutex<Option<PgListener>>,
}

impl Postgres {
    pub(super) async fn open(params: &Params, place: &str) -> Result<Self, StoreError> {
        let options = params.options().map_err(|why| StoreError::Other {
            path: place.into(),
            why,
        })?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(CONNECT_DEADLINE)
            .connect_with(options)
            .await
            .map_err(|why| StoreError::from_sqlx(place, &why))?;
        let store = Self {
            pool,
            listener: Mutex::new(None),
        };
        store.migrate(place).await?;
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

    /// What others recorded after `held`, read under the claim's lock.
    async fn news(
        connection: &mut db::Connection,
        held: Generation,
        newest: Generation,
    ) -> rows::Result<News> {
        let changed: Vec<(i64, String)> =
            sqlx::query_as("SELECT generation, cluster_id FROM history WHERE generation > $1")
                .bind(rows::signed(held.0)?)
                .fetch_all(&mut *connection)
                .await?;
        let (generations, ids): (BTreeSet<i64>, BTreeSet<String>) = changed.into_iter().unzip();
        let behind = newest.0.saturating_sub(held.0);
        if generations.len() as u64 != behind || ids.len() > READ_EACH_MAX {
            let all = rows::load_clusters(connection, None).await?;
            return Ok(News::All(newest, all));
        }
        let mut steps = Vec::with_capacity(ids.len());
        for id in ids {
            steps.push(step(connection, &id).await?);
        }
        Ok(News::Changed(newest, steps))
    }
}

/// A cluster as it is now, or that it is gone.
async fn step(connection: &mut db::Connection, id: &str) -> rows::Result<Step> {
    let held = rows::load_clusters(connection, Some(id)).await?.pop();
    if let Some(cluster) = held {
        return Ok(Step::Put(Arc::new(cluster)));
    }
    let id: ClusterId = id
        .parse()
        .map_err(|why| RowError::Damaged(format!("cluster {id:?}: {why}")))?;
    Ok(Step::Remove(id))
}

/// Tells other processes, in the transaction of the change.
async fn announce(
    connection: &mut db::Connection,
    steps: &[Step],
    generation: Generation,
) -> rows::Result<()> {
    let number = rows::signed(generation.0)?;
    // A generation without a cluster leaves a gap, over which others read everything.
    for id in steps.iter().filter_map(Step::id) {
        sqlx::query(
            "INSERT INTO history (generation, cluster_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(number)
        .bind(id.as_str())
        .execute(&mut *connection)
        .await?;
    }
    sqlx::query("DELETE FROM history WHERE generation <= $1")
        .bind(number - HISTORY_MAX)
        .execute(&mut *connection)
        .await?;
    sqlx::query("SELECT pg_notify($1, $2)")
        .bind(CHANNEL)
        .bind(generation.0.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

impl Backend for Postgres {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn load(&self, now_ms: u64) -> Done<'_, Loaded> {
        Box::pin(rows::load(&self.pool, now_ms))
    }

    fn claim(&self, held: Generation) -> Done<'_, (Claim, News)> {
        Box::pin(async move {
            let mut transaction = self.pool.begin().await?;
            let (newest,): (i64,) = sqlx::query_as(db::LOCKED_GENERATION)
                .fetch_one(&mut *transaction)
                .await?;
            let newest = Generation(rows::unsigned(newest)?);
            let news = if newest == held {
                News::Changed(newest, Vec::new())
            } else {
                Self::news(&mut transaction, held, newest).await?
            };
            Ok((Claim(Some(transaction)), news))
        })
    }

    fn record<'a>(
        &'a self,
        claim: Claim,
        steps: &'a [Step],
        generation: Generation,
        entries: &'a [Entry],
    ) -> Done<'a, ()> {
        Box::pin(async move {
            let mut transaction = match claim.0 {
                Some(transaction) => transaction,
                None => self.pool.begin().await?,
            };
            rows::record(&mut transaction, steps, generation, entries).await?;
            announce(&mut transaction, steps, generation).await?;
            transaction.commit().await?;
            Ok(())
        })
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = Option<Generation>> + Send + '_>> {
        Box::pin(async {
            let mut held = self.listener.lock().await;
            if let Some(listener) = held.as_mut() {
                if let Ok(Some(said)) = listener.try_recv().await {
                    return said.payload().parse().ok().map(Generation);
                }
                *held = None;
            }
            let listener = async {
                let mut listener = PgListener::connect_with(&self.pool).await?;
                listener.listen(CHANNEL).await?;
                Ok::<_, sqlx::Error>(listener)
            };
            match listener.await {
                Ok(listener) => *held = Some(listener),
                Err(_) => tokio::time::sleep(LOST).await,
            }
            // What was said while nobody listened was missed.
            None
        })
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
        Box::pin(audit::read(&self.pool, filter))
    }

    fn audit_since<'a>(&'a self, filter: &'a Filter, seq: i64) -> Done<'a, Vec<Recorded>> {
        Box::pin(audit::since(&self.pool, filter, seq))
    }

    fn audit_newest(&self) -> Done<'_, i64> {
        Box::pin(audit::newest(&self.pool))
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
        Box::pin(identity::tokens(&self.pool))
    }

    fn api_token<'a>(&'a self, digest: &'a Digest) -> Done<'a, Option<ApiToken>> {
        Box::pin(identity::token_by_digest(&self.pool, digest))
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
        Box::pin(connect::one(&self.pool, id))
    }

    fn connect_requests(&self, now_ms: u64) -> Done<'_, Vec<ConnectRequest>> {
        Box::pin(connect::open(&self.pool, now_ms))
    }

    fn session_epoch<'a>(&'a self, subject: &'a str) -> Done<'a, u64> {
        Box::pin(identity::epoch(&self.pool, subject))
    }

    fn ended_sessions(&self, since_unix_ms: u64) -> Done<'_, Vec<(String, u64)>> {
        Box::pin(identity::ended(&self.pool, since_unix_ms))
    }

    fn agent_cas(&self) -> Done<'_, Vec<AgentCa>> {
        Box::pin(enrol::cas(&self.pool))
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
            if let Ok(mut listener) = self.listener.try_lock() {
                *listener = None;
            }
            let _ = tokio::time::timeout(CALL_DEADLINE, self.pool.close()).await;
        })
    }
}
