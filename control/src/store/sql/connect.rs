//! Rows of agents that ask for a token.

use culvert_proto::id::ClusterId;

use super::db::{Connection, Pool};
use super::rows::{Lease, Result, digest_of, signed, unsigned};
use crate::connect::{Asked, ConnectRequest, KEPT_MS, Stage};
use crate::store::error::RowError;

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    secret: Vec<u8>,
    code: String,
    cluster_wish: String,
    version: String,
    host: String,
    address: String,
    created_unix_ms: i64,
    expires_unix_ms: i64,
    stage: String,
    cluster_id: Option<String>,
    decided_by: Option<String>,
    token_id: Option<String>,
}

/// What follows from a decision: word, cluster, who decided, token.
type Decided<'a> = (
    &'static str,
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
);

fn decided(stage: &Stage) -> Decided<'_> {
    match stage {
        Stage::Pending => ("pending", None, None, None),
        Stage::Approved { cluster, by } => ("approved", Some(cluster.as_str()), Some(by), None),
        Stage::Denied { by } => ("denied", None, Some(by), None),
        Stage::Consumed {
            cluster,
            by,
            token_id,
        } => (
            "consumed",
            Some(cluster.as_str()),
            Some(by),
            Some(token_id.as_str()),
        ),
    }
}

fn request(row: Row) -> Result<ConnectRequest> {
    let damaged = |what: &str| RowError::Damaged(format!("connect request {}: {what}", row.id));
    let cluster = || -> Result<ClusterId> {
        let id = row.cluster_id.as_deref().and_then(|id| id.parse().ok());
        id.ok_or_else(|| damaged("no cluster"))
    };
    let by = row.decided_by.clone().unwrap_or_default();
    let stage = match row.stage.as_str() {
        "pending" => Stage::Pending,
        "approved" => Stage::Approved {
            cluster: cluster()?,
            by,
        },
        "denied" => Stage::Denied { by },
        "consumed" => Stage::Consumed {
            cluster: cluster()?,
            by,
            token_id: row.token_id.clone().unwrap_or_default(),
        },
        _ => return Err(damaged("no such stage")),
    };
    Ok(ConnectRequest {
        secret: digest_of(row.secret)?,
        code: row.code,
        asked: Asked {
            cluster: row.cluster_wish,
            version: row.version,
            host: row.host,
        },
        address: row.address,
        created_unix_ms: unsigned(row.created_unix_ms)?,
        expires_unix_ms: unsigned(row.expires_unix_ms)?,
        stage,
        id: row.id,
    })
}

/// Adds a request; those that are long over go. Answers how many wait then, of its address and in
/// all; over `most` nothing was done.
pub(super) async fn add(
    pool: &Pool,
    request: &ConnectRequest,
    most: (u64, u64),
) -> Result<(u64, u64)> {
    let now = request.created_unix_ms;
    let mut lease = Lease::take(pool).await?;
    let mut transaction = lease.begin().await?;
    sqlx::query("DELETE FROM connect_requests WHERE expires_unix_ms <= $1")
        .bind(signed(now.saturating_sub(KEPT_MS))?)
        .execute(&mut *transaction)
        .await?;
    sqlx::query(
        "INSERT INTO connect_requests (id, secret, code, cluster_wish, version, host, address,
                                       created_unix_ms, expires_unix_ms, stage)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'pending')",
    )
    .bind(&request.id)
    .bind(&request.secret.0[..])
    .bind(&request.code)
    .bind(&request.asked.cluster)
    .bind(&request.asked.version)
    .bind(&request.asked.host)
    .bind(&request.address)
    .bind(signed(now)?)
    .bind(signed(request.expires_unix_ms)?)
    .execute(&mut *transaction)
    .await?;
    let addresses: Vec<(String,)> = sqlx::query_as(
        "SELECT address FROM connect_requests WHERE stage = 'pending' AND expires_unix_ms > $1",
    )
    .bind(signed(now)?)
    .fetch_all(&mut *transaction)
    .await?;
    let own = crate::connect::source(&request.address);
    let of_own = |(address,): &&(String,)| crate::connect::source(address) == own;
    let of_address = addresses.iter().filter(of_own).count() as u64;
    let counts = (of_address, addresses.len() as u64);
    if counts.0 > most.0 || counts.1 > most.1 {
        return Ok(counts);
    }
    transaction.commit().await?;
    lease.keep();
    Ok(counts)
}

pub(super) async fn one(pool: &Pool, id: &str) -> Result<Option<ConnectRequest>> {
    let row: Option<Row> = sqlx::query_as("SELECT * FROM connect_requests WHERE id = $1")
        .bind(id)
        .fetch_optional(pool)
        .await?;
    row.map(request).transpose()
}

/// Those that are not over, oldest first.
pub(super) async fn open(pool: &Pool, now_ms: u64) -> Result<Vec<ConnectRequest>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT * FROM connect_requests
         WHERE stage IN ('pending', 'approved') AND expires_unix_ms > $1
         ORDER BY created_unix_ms, id",
    )
    .bind(signed(now_ms)?)
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(request).collect()
}

/// What was decided of a request that stood at `before`. Part of the caller's transaction: where
/// another came first nothing of it is recorded.
pub(super) async fn decide(
    connection: &mut Connection,
    request: &ConnectRequest,
    before: &Stage,
) -> Result<()> {
    let (stage, cluster, by, token) = decided(&request.stage);
    let changed = sqlx::query(
        "UPDATE connect_requests
         SET stage = $1, cluster_id = $2, decided_by = $3, token_id = $4, expires_unix_ms = $5
         WHERE id = $6 AND stage = $7",
    )
    .bind(stage)
    .bind(cluster)
    .bind(by)
    .bind(token)
    .bind(signed(request.expires_unix_ms)?)
    .bind(&request.id)
    .bind(decided(before).0)
    .execute(connection)
    .await?;
    match changed.rows_affected() {
        1 => Ok(()),
        _ => Err(RowError::Damaged(format!(
            "connect request {} is not {} any more",
            request.id,
            decided(before).0
        ))),
    }
}
