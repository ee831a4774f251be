//! Rows of requests that data planes audited, each once.

use culvert_audit::{Attempted, Ended, Phase, Record};

use super::db::{self, Connection, Pool};
use super::rows::{Lease, Result, signed};
use crate::audit::{ATTEMPTED, Recorded};
use crate::store::error::RowError;

/// Adds what is not there yet, in one transaction; answers the rows that are new.
pub(super) async fn take(pool: &Pool, records: &[Record]) -> Result<Vec<Recorded>> {
    let mut lease = Lease::take(pool).await?;
    let mut transaction = lease.begin().await?;
    db::in_order(&mut transaction).await?;
    let mut new = Vec::with_capacity(records.len());
    for record in records {
        let row = match record {
            Record::Attempted(attempted) => insert(&mut transaction, attempted).await?,
            Record::Ended(ended) => finish(&mut transaction, ended).await?,
            // A spool's own note; no data plane ships it.
            Record::Carried { .. } => None,
        };
        new.extend(row);
    }
    transaction.commit().await?;
    lease.keep();
    Ok(new)
}

async fn insert(connection: &mut Connection, attempted: &Attempted) -> Result<Option<Recorded>> {
    let Attempted {
        actor, resource, ..
    } = attempted;
    let groups =
        serde_json::to_string(&actor.groups).map_err(|why| RowError::Damaged(why.to_string()))?;
    let row = sqlx::query_as(
        "INSERT INTO audit (time_unix_ms, request_id, route, transport, actor_sub, actor_email,
             actor_groups, verb, outcome, cluster, resource_group, resource_version, resource,
             namespace, name, reason, event_id, phase)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, '', $16, $17)
         ON CONFLICT (event_id, phase) DO NOTHING RETURNING *",
    )
    .bind(signed(attempted.time_unix_ms)?)
    .bind(attempted.request_id.to_string())
    .bind(stored(&attempted.route))
    .bind(stored(&attempted.transport))
    .bind(stored(&actor.sub))
    .bind(stored(&actor.email))
    .bind(groups)
    .bind(attempted.verb.as_str())
    .bind(ATTEMPTED)
    .bind(stored(&attempted.cluster))
    .bind(stored(&resource.group))
    .bind(stored(&resource.version))
    .bind(stored(&resource.resource))
    .bind(stored(&resource.namespace))
    .bind(stored(&resource.name))
    .bind(attempted.id.to_string())
    .bind(i64::from(Phase::Attempted.number()))
    .fetch_optional(connection)
    .await?;
    Ok(row)
}

/// Who and what stand in the row of the attempt; that one may have been pruned.
async fn finish(connection: &mut Connection, ended: &Ended) -> Result<Option<Recorded>> {
    let row = sqlx::query_as(
        "INSERT INTO audit (time_unix_ms, request_id, route, transport, actor_sub, actor_email,
             actor_groups, verb, outcome, cluster, resource_group, resource_version, resource,
             namespace, name, reason, event_id, phase, status, bytes_to_service, bytes_to_client,
             duration_ms)
         SELECT CAST($1 AS BIGINT), coalesce(a.request_id, ''), coalesce(a.route, ''),
             coalesce(a.transport, ''), coalesce(a.actor_sub, ''), coalesce(a.actor_email, ''),
             coalesce(a.actor_groups, '[]'), CAST($2 AS TEXT), CAST($3 AS TEXT),
             coalesce(a.cluster, ''), coalesce(a.resource_group, ''),
             coalesce(a.resource_version, ''), coalesce(a.resource, ''),
             coalesce(a.namespace, ''), coalesce(a.name, ''), CAST($4 AS TEXT),
             CAST($5 AS TEXT), CAST($6 AS BIGINT), CAST($7 AS BIGINT), CAST($8 AS BIGINT),
             CAST($9 AS BIGINT), CAST($10 AS BIGINT)
         FROM (SELECT 1) AS one LEFT JOIN audit AS a ON a.event_id = $5 AND a.phase = 0
         WHERE true
         ON CONFLICT (event_id, phase) DO NOTHING RETURNING *",
    )
    .bind(signed(ended.time_unix_ms)?)
    .bind(ended.verb.as_str())
    .bind(ended.outcome.as_str())
    .bind(stored(&ended.reason))
    .bind(ended.id.to_string())
    .bind(i64::from(ended.phase().number()))
    .bind((ended.status > 0).then_some(i64::from(ended.status)))
    .bind(capped(ended.to_service))
    .bind(capped(ended.to_client))
    .bind(capped(ended.duration_ms))
    .fetch_optional(connection)
    .await?;
    Ok(row)
}

/// PostgreSQL's texts hold no NUL, which a decoded path may.
fn stored(text: &str) -> std::borrow::Cow<'_, str> {
    match text.contains('\0') {
        true => text.replace('\0', "\u{FFFD}").into(),
        false => text.into(),
    }
}

fn capped(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
