//! The row of the licence.

use super::audit;
use super::db::{Connection, Pool};
use super::rows::{Lease, Result, signed, unsigned};
use crate::audit::Entry;
use crate::license::LicenseRecord;
use culvert_licence::Ladder;

type Row = (Option<String>, i64, i64, Option<i64>);

pub(super) async fn load(connection: &mut Connection) -> Result<LicenseRecord> {
    let row: Option<Row> =
        sqlx::query_as("SELECT token, seen_unix_ms, without_ms, last_success_unix_ms FROM license")
            .fetch_optional(connection)
            .await?;
    let Some((token, seen, without, last_success)) = row else {
        return Ok(LicenseRecord::default());
    };
    Ok(LicenseRecord {
        token,
        ladder: Ladder {
            seen_unix_ms: unsigned(seen)?,
            without_ms: unsigned(without)?,
        },
        last_success_unix_ms: last_success.map(unsigned).transpose()?,
    })
}

/// Writes the row, and the row of the audit log that says why.
pub(super) async fn save(pool: &Pool, record: &LicenseRecord, entry: Option<&Entry>) -> Result<()> {
    let mut lease = Lease::take(pool).await?;
    let mut transaction = lease.begin().await?;
    sqlx::query(
        "INSERT INTO license (only_row, token, seen_unix_ms, without_ms, last_success_unix_ms)
         VALUES (1, $1, $2, $3, $4)
         ON CONFLICT (only_row) DO UPDATE SET token = excluded.token,
             seen_unix_ms = excluded.seen_unix_ms, without_ms = excluded.without_ms,
             last_success_unix_ms = excluded.last_success_unix_ms",
    )
    .bind(&record.token)
    .bind(signed(record.ladder.seen_unix_ms)?)
    .bind(signed(record.ladder.without_ms)?)
    .bind(record.last_success_unix_ms.map(signed).transpose()?)
    .execute(&mut *transaction)
    .await?;
    if let Some(entry) = entry {
        audit::insert(&mut transaction, entry).await?;
    }
    transaction.commit().await?;
    lease.keep();
    Ok(())
}
