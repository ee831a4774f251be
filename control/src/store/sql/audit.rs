//! Rows of the audit log.

use super::db::{self, Connection, Pool};
use super::rows::{Lease, Result, signed};
use crate::audit::{Entry, Filter, Recorded};
use crate::store::error::RowError;

/// Rows that one transaction prunes: decisions wait no longer than that.
const CHUNK: i64 = 1_000;

macro_rules! filtered {
    ($select:literal, $tail:literal) => {
        concat!(
            $select,
            " FROM audit WHERE ($1 IS NULL OR actor_sub = $1 OR actor_email = $1)
              AND ($2 IS NULL OR verb = $2) AND ($3 IS NULL OR outcome = $3)
              AND ($4 IS NULL OR cluster = $4) AND ($5 IS NULL OR namespace = $5)
              AND ($6 IS NULL OR name = $6) AND ($7 IS NULL OR request_id = $7)
              AND time_unix_ms >= $8 AND time_unix_ms < $9 ",
            $tail
        )
    };
}

/// Binds what `filtered!` asks for, ?1 to ?9.
macro_rules! bound {
    ($query:expr, $filter:expr, $from:expr, $to:expr) => {
        $query
            .bind(&$filter.actor)
            .bind(&$filter.verb)
            .bind(&$filter.outcome)
            .bind(&$filter.cluster)
            .bind(&$filter.namespace)
            .bind(&$filter.name)
            .bind(&$filter.request_id)
            .bind($from)
            .bind($to)
    };
}

/// Part of the caller's transaction.
pub(super) async fn insert(connection: &mut Connection, entry: &Entry) -> Result<()> {
    db::in_order(connection).await?;
    let cause = &entry.cause;
    let groups = serde_json::to_string(&cause.actor.groups)
        .map_err(|why| RowError::Damaged(why.to_string()))?;
    sqlx::query(
        "INSERT INTO audit (time_unix_ms, request_id, route, transport, actor_sub, actor_email,
             actor_groups, verb, outcome, cluster, resource_group, resource_version, resource,
             namespace, name, reason)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'culvert', 'v1', $11, '', $12, $13)",
    )
    .bind(signed(entry.time_unix_ms)?)
    .bind(&cause.request_id)
    .bind(&cause.route)
    .bind(cause.transport)
    .bind(&cause.actor.sub)
    .bind(&cause.actor.email)
    .bind(groups)
    .bind(entry.verb.as_str())
    .bind(entry.outcome.as_str())
    .bind(&entry.cluster)
    .bind(entry.verb.resource())
    .bind(&entry.name)
    .bind(&entry.reason)
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn append(pool: &Pool, entry: &Entry) -> Result<()> {
    let mut lease = Lease::take(pool).await?;
    let mut transaction = lease.begin().await?;
    insert(&mut transaction, entry).await?;
    transaction.commit().await?;
    lease.keep();
    Ok(())
}

/// The rows of one page, newest first, and how many match in all.
pub(super) async fn read(pool: &Pool, filter: &Filter) -> Result<(Vec<Recorded>, u64)> {
    let (from, to) = (filter.from_unix_ms.unwrap_or(0), filter.to_unix_ms);
    let (from, to) = (signed(from)?, to.map_or(Ok(i64::MAX), signed)?);
    let mut transaction = pool.begin().await?;
    let count = sqlx::query_scalar(filtered!("SELECT count(*)", ""));
    let total: i64 = bound!(count, filter, from, to)
        .fetch_one(&mut *transaction)
        .await?;
    let page = sqlx::query_as(filtered!(
        "SELECT *",
        "AND ($10 IS NULL OR seq < $10) ORDER BY seq DESC LIMIT $11 OFFSET $12"
    ));
    let rows = bound!(page, filter, from, to)
        .bind(filter.before)
        .bind(i64::from(filter.limit))
        .bind(signed(filter.offset)?)
        .fetch_all(&mut *transaction)
        .await?;
    Ok((rows, u64::try_from(total).unwrap_or_default()))
}

/// Rows behind `seq`, oldest first.
pub(super) async fn since(pool: &Pool, filter: &Filter, seq: i64) -> Result<Vec<Recorded>> {
    let (from, to) = (filter.from_unix_ms.unwrap_or(0), filter.to_unix_ms);
    let (from, to) = (signed(from)?, to.map_or(Ok(i64::MAX), signed)?);
    let page = sqlx::query_as(filtered!(
        "SELECT *",
        "AND seq > $10 ORDER BY seq LIMIT $11"
    ));
    let rows = bound!(page, filter, from, to)
        .bind(seq)
        .bind(i64::from(filter.limit))
        .fetch_all(pool)
        .await?;
    Ok(rows)
}

/// The number of the newest row.
pub(super) async fn newest(pool: &Pool) -> Result<i64> {
    let newest: Option<i64> = sqlx::query_scalar("SELECT max(seq) FROM audit")
        .fetch_one(pool)
        .await?;
    Ok(newest.unwrap_or_default())
}

/// Deletes some rows that are too old or too many and gives their space back;
/// answers how many went.
pub(super) async fn prune(
    pool: &Pool,
    before_unix_ms: Option<u64>,
    bytes_max: Option<u64>,
) -> Result<u64> {
    let mut lease = Lease::take(pool).await?;
    let mut transaction = lease.begin().await?;
    let before = before_unix_ms.map_or(Ok(i64::MIN), signed)?;
    let mut gone = sqlx::query(
        "DELETE FROM audit WHERE seq IN
             (SELECT seq FROM audit WHERE time_unix_ms < $1 ORDER BY time_unix_ms LIMIT $2)",
    )
    .bind(before)
    .bind(CHUNK)
    .execute(&mut *transaction)
    .await?
    .rows_affected();
    if let Some(most) = bytes_max
        && gone == 0
        && db::bytes(&mut transaction).await? > most
    {
        gone = sqlx::query(
            "DELETE FROM audit WHERE seq IN (SELECT seq FROM audit ORDER BY seq LIMIT $1)",
        )
        .bind(CHUNK)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
    }
    transaction.commit().await?;
    lease.keep();
    if gone > 0 {
        db::reclaim(pool).await?;
    }
    Ok(gone)
}
