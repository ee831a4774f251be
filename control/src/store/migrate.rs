//! From a SQLite store to a PostgreSQL one: everything, the audit log included.

use super::backend::Backend as _;
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use super::{Dsn, StoreError};

/// Audit rows that are copied in one transaction.
const CHUNK: i64 = 1_000;

/// What was copied.
pub struct Copied {
    /// The hub that it is.
    pub hub_id: String,
    /// The generation published last.
    pub generation: u64,
    /// Clusters.
    pub clusters: usize,
    /// Rows of the audit log.
    pub audit_rows: u64,
}

/// Why a store was not copied.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The two are not of the kinds that can be copied.
    #[error("stores are copied from sqlite:PATH to PostgreSQL, not the other way")]
    Kinds,
    /// One of the two.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Copies the store `from` into the empty database `to`. No control process may hold
/// `from`; it stays as it is. Clusters go last, so that a copy which was cut off is
/// begun anew: the database counts as empty until they are in it.
///
/// # Errors
/// [`MigrateError`]; then `to` is not to be used, and `from` is as before.
pub async fn migrate(from: &Dsn, to: &Dsn, now_ms: u64) -> Result<Copied, MigrateError> {
    let (Dsn::Sqlite(path), Dsn::Postgres(params)) = (from, to) else {
        return Err(MigrateError::Kinds);
    };
    let (source, target) = (from.place(), to.place());
    let sqlite = Sqlite::open(path).await?;
    let postgres = Postgres::open(params, &target).await?;
    let loaded = sqlite.load(now_ms).await.map_err(|why| why.at(&source))?;
    postgres.load(now_ms).await.map_err(|why| why.at(&target))?;
    postgres.is_empty().await.map_err(|why| why.at(&target))?;
    let (mut audit_rows, mut last) = (0, 0);
    loop {
        let rows = sqlite.audit_after(last, CHUNK).await;
        let rows = rows.map_err(|why| why.at(&source))?;
        let Some(newest) = rows.last() else { break };
        last = newest.seq;
        postgres
            .take_audit(&rows)
            .await
            .map_err(|why| why.at(&target))?;
        audit_rows += rows.len() as u64;
    }
    let tokens = sqlite.api_tokens().await.map_err(|why| why.at(&source))?;
    let epochs = sqlite.epochs().await.map_err(|why| why.at(&source))?;
    postgres
        .take_identity(&tokens, &epochs)
        .await
        .map_err(|why| why.at(&target))?;
    let cas = sqlite.agent_cas().await.map_err(|why| why.at(&source))?;
    postgres
        .take_agent_cas(&cas)
        .await
        .map_err(|why| why.at(&target))?;
    postgres
        .take(&loaded)
        .await
        .map_err(|why| why.at(&target))?;
    sqlite.close().await;
    postgres.close().await;
    Ok(Copied {
        hub_id: loaded.hub_id,
        generation: loaded.generation.0,
        clusters: loaded.clusters.len(),
        audit_rows,
    })
}
