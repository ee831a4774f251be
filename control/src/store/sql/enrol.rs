//! Rows of the CAs of agents and of bootstrap tokens.

use culvert_proto::token::Digest;

use super::audit;
use super::db::{Connection, Pool};
use super::rows::{Lease, Result, digest_of, signed, unsigned};
use crate::audit::Entry;
use crate::enrol::{AgentCa, CaState, EnrolToken};
use crate::store::error::RowError;

type CaRow = (String, String, Vec<u8>, Vec<u8>, i64, i64);
type TokenRow = (Vec<u8>, String, i64, i64);

/// Oldest first.
pub(super) async fn cas(pool: &Pool) -> Result<Vec<AgentCa>> {
    let rows: Vec<CaRow> = sqlx::query_as(
        "SELECT id, state, certificate, sealed_key, created_unix_ms, last_unix_s
         FROM agent_cas ORDER BY created_unix_ms, id",
    )
    .fetch_all(pool)
    .await?;
    let cas = rows.into_iter().map(|row| {
        let (id, state, certificate, sealed_key, created, last) = row;
        let state = CaState::parse(&state)
            .ok_or_else(|| RowError::Damaged(format!("agent CA {id}: state {state:?}")))?;
        Ok(AgentCa {
            id,
            state,
            certificate,
            sealed_key,
            created_unix_ms: unsigned(created)?,
            last_unix_s: unsigned(last)?,
        })
    });
    cas.collect()
}

/// Writes a CA; of one that is known the state alone changes.
pub(super) async fn put_ca(connection: &mut Connection, ca: &AgentCa) -> Result<()> {
    sqlx::query(
        "INSERT INTO agent_cas (id, state, certificate, sealed_key, created_unix_ms, last_unix_s)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (id) DO UPDATE SET state = excluded.state",
    )
    .bind(&ca.id)
    .bind(ca.state.as_str())
    .bind(&ca.certificate)
    .bind(&ca.sealed_key)
    .bind(signed(ca.created_unix_ms)?)
    .bind(signed(ca.last_unix_s)?)
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn drop_ca(connection: &mut Connection, id: &str) -> Result<()> {
    sqlx::query("DELETE FROM agent_cas WHERE id = $1")
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

/// The CA signed a certificate that ends then. Whether it is still there.
pub(super) async fn ca_signed(pool: &Pool, id: &str, until_unix_s: u64) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE agent_cas SET last_unix_s =
             CASE WHEN last_unix_s < $1 THEN $1 ELSE last_unix_s END WHERE id = $2",
    )
    .bind(signed(until_unix_s)?)
    .bind(id)
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Adds a token and the row that says who did it; expired ones go. Answers how many there are
/// then; over `most` nothing was done.
pub(super) async fn add_token(
    pool: &Pool,
    token: &EnrolToken,
    most: u64,
    entry: &Entry,
) -> Result<u64> {
    let mut lease = Lease::take(pool).await?;
    let mut transaction = lease.begin().await?;
    sqlx::query("DELETE FROM enrol_tokens WHERE not_after_unix_ms <= $1")
        .bind(signed(token.created_unix_ms)?)
        .execute(&mut *transaction)
        .await?;
    sqlx::query(
        "INSERT INTO enrol_tokens (digest, cluster, created_unix_ms, not_after_unix_ms)
         VALUES ($1, $2, $3, $4)",
    )
    .bind(&token.digest.0[..])
    .bind(&token.cluster)
    .bind(signed(token.created_unix_ms)?)
    .bind(signed(token.not_after_unix_ms)?)
    .execute(&mut *transaction)
    .await?;
    let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM enrol_tokens")
        .fetch_one(&mut *transaction)
        .await?;
    let count = unsigned(count)?;
    if count > most {
        return Ok(count);
    }
    audit::insert(&mut transaction, entry).await?;
    transaction.commit().await?;
    lease.keep();
    Ok(count)
}

/// Takes the token of this digest out: whoever gets it is the only one.
pub(super) async fn take_token(pool: &Pool, digest: &Digest) -> Result<Option<EnrolToken>> {
    let row: Option<TokenRow> = sqlx::query_as(
        "DELETE FROM enrol_tokens WHERE digest = $1
         RETURNING digest, cluster, created_unix_ms, not_after_unix_ms",
    )
    .bind(&digest.0[..])
    .fetch_optional(pool)
    .await?;
    let token = row.map(|(digest, cluster, created, not_after)| {
        Ok(EnrolToken {
            digest: digest_of(digest)?,
            cluster,
            created_unix_ms: unsigned(created)?,
            not_after_unix_ms: unsigned(not_after)?,
        })
    });
    token.transpose()
}

/// Forgets tokens that ended before `now_ms`; how many.
pub(super) async fn prune_tokens(pool: &Pool, now_ms: u64) -> Result<u64> {
    let gone = sqlx::query("DELETE FROM enrol_tokens WHERE not_after_unix_ms <= $1")
        .bind(signed(now_ms)?)
        .execute(pool)
        .await?;
    Ok(gone.rows_affected())
}
