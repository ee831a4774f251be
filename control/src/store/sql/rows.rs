//! Rows to clusters and back.

use std::collections::HashMap;

use culvert_net::crypto;
use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::token::Digest;
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Transaction};

use super::db::{self, Connection, Db, Pool};
use super::{access, audit, connect, enrol, identity, license};
use crate::audit::Entry;
use crate::cluster::{Cluster, Spec, Token};
use crate::store::error::RowError;
use crate::store::{Loaded, Step, Touch};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A connection, for one transaction. Unless that was committed the connection
/// is thrown away: after some errors (a full disk) SQLite has rolled back by
/// itself, and sqlx would refuse every later transaction on it.
pub(super) struct Lease(Option<PoolConnection<Db>>);

impl Lease {
    pub(super) async fn take(pool: &Pool) -> Result<Self> {
        Ok(Self(Some(pool.acquire().await?)))
    }

    pub(super) async fn begin(&mut self) -> Result<Transaction<'_, Db>> {
        let connection = self.0.as_mut().expect("held until the lease ends");
        Ok(connection.begin_with(db::BEGIN).await?)
    }

    /// The transaction was committed: the connection is sound.
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

pub(super) type Result<T> = std::result::Result<T, RowError>;
type ClusterRow = (String, String, i64, i64, i64, Option<i64>, bool);
type TokenRow = (
    Vec<u8>,
    String,
    String,
    i64,
    Option<i64>,
    Option<i64>,
    Option<i64>,
);

pub(super) async fn load(pool: &Pool, now_ms: u64) -> Result<Loaded> {
    let mut lease = Lease::take(pool).await?;
    let mut transaction = lease.begin().await?;
    let hub_id = crypto::random_bytes::<16>();
    sqlx::query(
        "INSERT INTO hub (only_row, hub_id, generation, written_by, created_unix_ms)
         VALUES (1, $1, 1, $2, $3) ON CONFLICT (only_row) DO UPDATE SET written_by = excluded.written_by",
    )
    .bind(uuid::Builder::from_random_bytes(hub_id).into_uuid().to_string())
    .bind(VERSION)
    .bind(signed(now_ms)?)
    .execute(&mut *transaction)
    .await?;
    let (hub_id, generation): (String, i64) = sqlx::query_as("SELECT hub_id, generation FROM hub")
        .fetch_one(&mut *transaction)
        .await?;
    let clusters = load_clusters(&mut transaction, None).await?;
    let license = license::load(&mut transaction).await?;
    transaction.commit().await?;
    lease.keep();
    Ok(Loaded {
        hub_id,
        generation: Generation(unsigned(generation)?),
        clusters,
        license,
    })
}

/// Every cluster, or the one that `only` names, by id.
pub(super) async fn load_clusters(
    connection: &mut Connection,
    only: Option<&str>,
) -> Result<Vec<Cluster>> {
    let mut tokens = load_tokens(connection, only).await?;
    let mut routes = access::load_routes(connection, only).await?;
    let mut personal = access::load_personal(connection, only).await?;
    let rows: Vec<ClusterRow> = sqlx::query_as(
        "SELECT id, spec, epoch_floor, created_unix_ms, updated_unix_ms, last_connected_unix_ms,
                from_file
         FROM clusters WHERE $1 IS NULL OR id = $1 ORDER BY id",
    )
    .bind(only)
    .fetch_all(connection)
    .await?;
    let clusters = rows.into_iter().map(|row| {
        let id = row.0.clone();
        let own = tokens.remove(&id).unwrap_or_default();
        Ok(Cluster {
            routes: routes.remove(&id).unwrap_or_default(),
            personal: personal.remove(&id).unwrap_or_default(),
            ..cluster(row, own)?
        })
    });
    clusters.collect()
}

async fn load_tokens(
    connection: &mut Connection,
    only: Option<&str>,
) -> Result<HashMap<String, Vec<Token>>> {
    let rows: Vec<TokenRow> = sqlx::query_as(
        "SELECT digest, id, cluster_id, created_unix_ms, not_after_unix_ms, last_used_unix_ms,
                overlap_ms
         FROM tokens WHERE $1 IS NULL OR cluster_id = $1 ORDER BY created_unix_ms, rowid",
    )
    .bind(only)
    .fetch_all(connection)
    .await?;
    let mut tokens: HashMap<String, Vec<Token>> = HashMap::new();
    for (digest, id, cluster, created, not_after, last_used, overlap) in rows {
        tokens.entry(cluster).or_default().push(Token {
            id,
            digest: digest_of(digest)?,
            created_unix_ms: unsigned(created)?,
            not_after_unix_ms: not_after.map(unsigned).transpose()?,
            last_used_unix_ms: last_used.map(unsigned).transpose()?,
            pending_overlap_ms: overlap.map(unsigned).transpose()?,
        });
    }
    Ok(tokens)
}

fn cluster(row: ClusterRow, tokens: Vec<Token>) -> Result<Cluster> {
    let (id, spec, epoch_floor, created, updated, last_connected, from_file) = row;
    let damaged = |why: String| RowError::Damaged(format!("cluster {id:?}: {why}"));
    let spec: Spec = serde_json::from_str(&spec).map_err(|why| damaged(why.to_string()))?;
    Ok(Cluster {
        spec,
        epoch_floor: unsigned(epoch_floor)?,
        tokens,
        created_unix_ms: unsigned(created)?,
        updated_unix_ms: unsigned(updated)?,
        last_connected_unix_ms: last_connected.map(unsigned).transpose()?,
        from_file,
        routes: Vec::new(),
        personal: Vec::new(),
        id: id
            .parse::<ClusterId>()
            .map_err(|why| damaged(why.to_string()))?,
    })
}

/// One generation: all of its steps and the rows that say who made them. Part of
/// the caller's transaction.
pub(super) async fn record(
    connection: &mut Connection,
    steps: &[Step],
    generation: Generation,
    entries: &[Entry],
) -> Result<()> {
    raise(connection, generation).await?;
    // First, since a later step may lose what an earlier one gains.
    for id in steps.iter().filter_map(Step::id) {
        clear(connection, id).await?;
    }
    for step in steps {
        match step {
            Step::Put(cluster) => put(connection, cluster).await?,
            Step::Remove(id) => {
                sqlx::query("DELETE FROM clusters WHERE id = $1")
                    .bind(id.as_str())
                    .execute(&mut *connection)
                    .await?;
            }
            Step::End { subject, epoch } => identity::end(connection, subject, *epoch).await?,
            Step::Decide { request, before } => {
                connect::decide(connection, request, before).await?;
            }
            Step::AgentCa(ca) => enrol::put_ca(connection, ca).await?,
            Step::DropAgentCa(id) => enrol::drop_ca(connection, id).await?,
        }
    }
    for entry in entries {
        audit::insert(connection, entry).await?;
    }
    Ok(())
}

/// Takes all that belongs to a cluster.
async fn clear(connection: &mut Connection, id: &ClusterId) -> Result<()> {
    for parts in [
        "DELETE FROM tokens WHERE cluster_id = $1",
        "DELETE FROM routes WHERE cluster_id = $1",
        "DELETE FROM personal_tokens WHERE cluster_id = $1",
    ] {
        sqlx::query(parts)
            .bind(id.as_str())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Writes a cluster whose parts were cleared.
pub(super) async fn put(connection: &mut Connection, cluster: &Cluster) -> Result<()> {
    let spec = serde_json::to_string(&cluster.spec)
        .map_err(|why| RowError::Damaged(format!("cluster {}: {why}", cluster.id)))?;
    sqlx::query(
        "INSERT INTO clusters (id, spec, epoch_floor, created_unix_ms, updated_unix_ms, from_file)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (id) DO UPDATE SET spec = excluded.spec,
             epoch_floor = excluded.epoch_floor, updated_unix_ms = excluded.updated_unix_ms",
    )
    .bind(cluster.id.as_str())
    .bind(spec)
    .bind(signed(cluster.epoch_floor)?)
    .bind(signed(cluster.created_unix_ms)?)
    .bind(signed(cluster.updated_unix_ms)?)
    .bind(cluster.from_file)
    .execute(&mut *connection)
    .await?;
    for token in &cluster.tokens {
        sqlx::query(
            "INSERT INTO tokens (digest, id, cluster_id, created_unix_ms, not_after_unix_ms,
                                 last_used_unix_ms, overlap_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&token.digest.0[..])
        .bind(&token.id)
        .bind(cluster.id.as_str())
        .bind(signed(token.created_unix_ms)?)
        .bind(token.not_after_unix_ms.map(signed).transpose()?)
        .bind(token.last_used_unix_ms.map(signed).transpose()?)
        .bind(token.pending_overlap_ms.map(signed).transpose()?)
        .execute(&mut *connection)
        .await?;
    }
    access::put(connection, cluster).await
}

pub(super) async fn touch(pool: &Pool, touched: &[Touch]) -> Result<()> {
    let mut lease = Lease::take(pool).await?;
    let mut transaction = lease.begin().await?;
    for touch in touched {
        if let Some(at) = touch.last_connected_unix_ms {
            sqlx::query("UPDATE clusters SET last_connected_unix_ms = $1 WHERE id = $2")
                .bind(signed(at)?)
                .bind(touch.cluster.as_str())
                .execute(&mut *transaction)
                .await?;
        }
        for (token, at) in &touch.tokens {
            sqlx::query(
                "UPDATE tokens SET last_used_unix_ms = $1 WHERE cluster_id = $2 AND id = $3",
            )
            .bind(signed(*at)?)
            .bind(touch.cluster.as_str())
            .bind(token)
            .execute(&mut *transaction)
            .await?;
        }
    }
    transaction.commit().await?;
    lease.keep();
    Ok(())
}

/// Waits for a change that is still being recorded: its lock is taken first.
pub(super) async fn generation(pool: &Pool) -> Result<Generation> {
    let mut lease = Lease::take(pool).await?;
    let mut transaction = lease.begin().await?;
    let (generation,): (i64,) = sqlx::query_as(db::LOCKED_GENERATION)
        .fetch_one(&mut *transaction)
        .await?;
    transaction.commit().await?;
    lease.keep();
    Ok(Generation(unsigned(generation)?))
}

/// The version that wrote the store, as far as it can be read.
pub(super) async fn written_by(pool: &Pool) -> String {
    let row: std::result::Result<(String,), _> = sqlx::query_as("SELECT written_by FROM hub")
        .fetch_one(pool)
        .await;
    row.map_or_else(|_| "unknown".to_owned(), |(version,)| version)
}

/// Raises the generation by one; anything else means two writers.
async fn raise(connection: &mut Connection, generation: Generation) -> Result<()> {
    let raised = sqlx::query("UPDATE hub SET generation = $1 WHERE generation = $1 - 1")
        .bind(signed(generation.0)?)
        .execute(connection)
        .await?;
    if raised.rows_affected() == 1 {
        return Ok(());
    }
    Err(RowError::Damaged(format!(
        "its generation is not {} any more",
        generation.0 - 1
    )))
}

pub(super) fn digest_of(bytes: Vec<u8>) -> Result<Digest> {
    let digest = bytes.try_into();
    digest
        .map(Digest)
        .map_err(|_| RowError::Damaged("a digest is not 32 bytes".into()))
}

pub(super) fn signed(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| RowError::Damaged(format!("{value} does not fit a column")))
}

pub(super) fn unsigned(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| RowError::Damaged(format!("{value} is negative")))
}
