//! Rows of API tokens and of the epochs of sessions.

use culvert_proto::limits::ENDED_SUBJECTS_MAX;
use culvert_proto::token::Digest;

use super::audit;
use super::db::{Connection, Pool};
use super::rows::{Lease, Result, digest_of, signed, unsigned};
use crate::audit::Entry;
use crate::identity::{ApiToken, Scope};
use crate::store::error::RowError;

type Row = (String, Vec<u8>, String, String, i64, i64);

fn token((id, digest, name, scopes, created, not_after): Row) -> Result<ApiToken> {
    let damaged = |why: String| RowError::Damaged(format!("API token {id}: {why}"));
    let words: Vec<String> =
        serde_json::from_str(&scopes).map_err(|why| damaged(why.to_string()))?;
    // A scope of a later version gives nothing here.
    let scopes = words.iter().filter_map(|word| Scope::parse(word)).collect();
    Ok(ApiToken {
        digest: digest_of(digest)?,
        name,
        scopes,
        created_unix_ms: unsigned(created)?,
        not_after_unix_ms: unsigned(not_after)?,
        id,
    })
}

pub(super) async fn tokens(pool: &Pool) -> Result<Vec<ApiToken>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, digest, name, scopes, created_unix_ms, not_after_unix_ms FROM api_tokens
         ORDER BY id",
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(token).collect()
}

pub(super) async fn token_by_digest(pool: &Pool, digest: &Digest) -> Result<Option<ApiToken>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, digest, name, scopes, created_unix_ms, not_after_unix_ms FROM api_tokens
         WHERE digest = $1",
    )
    .bind(&digest.0[..])
    .fetch_optional(pool)
    .await?;
    row.map(token).transpose()
}

/// Adds a token and the row that says who did it; expired ones go. Answers how many there are
/// then; over `most` nothing was done.
pub(super) async fn add_token(
    pool: &Pool,
    token: &ApiToken,
    most: u64,
    entry: Option<&Entry>,
) -> Result<u64> {
    let words: Vec<&str> = token.scopes.iter().map(|scope| scope.as_str()).collect();
    let scopes = serde_json::to_string(&words).map_err(|why| RowError::Damaged(why.to_string()))?;
    let mut lease = Lease::take(pool).await?;
    let mut transaction = lease.begin().await?;
    sqlx::query("DELETE FROM api_tokens WHERE not_after_unix_ms <= $1")
        .bind(signed(token.created_unix_ms)?)
        .execute(&mut *transaction)
        .await?;
    sqlx::query(
        "INSERT INTO api_tokens (id, digest, name, scopes, created_unix_ms, not_after_unix_ms)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&token.id)
    .bind(&token.digest.0[..])
    .bind(&token.name)
    .bind(scopes)
    .bind(signed(token.created_unix_ms)?)
    .bind(signed(token.not_after_unix_ms)?)
    .execute(&mut *transaction)
    .await?;
    let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM api_tokens")
        .fetch_one(&mut *transaction)
        .await?;
    let count = unsigned(count)?;
    if count > most {
        return Ok(count);
    }
    if let Some(entry) = entry {
        audit::insert(&mut transaction, entry).await?;
    }
    transaction.commit().await?;
    lease.keep();
    Ok(count)
}

/// Whether there was such a token.
pub(super) async fn remove_token(pool: &Pool, id: &str, entry: &Entry) -> Result<bool> {
    let mut lease = Lease::take(pool).await?;
    let mut transaction = lease.begin().await?;
    let gone = sqlx::query("DELETE FROM api_tokens WHERE id = $1")
        .bind(id)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
    if gone > 0 {
        audit::insert(&mut transaction, entry).await?;
    }
    transaction.commit().await?;
    lease.keep();
    Ok(gone > 0)
}

pub(super) async fn epoch(pool: &Pool, subject: &str) -> Result<u64> {
    let row: Option<(i64,)> = sqlx::query_as("SELECT epoch FROM session_epochs WHERE subject = $1")
        .bind(subject)
        .fetch_optional(pool)
        .await?;
    row.map_or(Ok(0), |(epoch,)| unsigned(epoch))
}

/// Ends every session of the subject below `epoch`.
pub(super) async fn end(connection: &mut Connection, subject: &str, epoch: u64) -> Result<()> {
    sqlx::query(
        "INSERT INTO session_epochs (subject, epoch) VALUES ($1, $2)
         ON CONFLICT (subject) DO UPDATE SET epoch = excluded.epoch",
    )
    .bind(subject)
    .bind(signed(epoch)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// Subjects whose epoch is above `since`, the highest first.
pub(super) async fn ended(pool: &Pool, since: u64) -> Result<Vec<(String, u64)>> {
    let most = i64::try_from(ENDED_SUBJECTS_MAX).unwrap_or(i64::MAX);
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT subject, epoch FROM session_epochs WHERE epoch > $1
         ORDER BY epoch DESC LIMIT $2",
    )
    .bind(signed(since)?)
    .bind(most.saturating_add(1))
    .fetch_all(pool)
    .await?;
    let rows = rows.into_iter();
    rows.map(|(subject, epoch)| Ok((subject, unsigned(epoch)?)))
        .collect()
}
