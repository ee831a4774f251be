//! The audit log of decisions.

use tokio::time::sleep;

use super::{Hub, HubError};
use crate::audit::{Entry, Filter, Recorded, Retention};
use crate::license::LicenseRecord;

/// Rows of refused changes that wait for a store that cannot write.
pub const WAITING_MAX: usize = 1_024;

impl Hub {
    /// Records a change that was refused or failed. While the store cannot write,
    /// the row waits in memory; the answer to the caller does not.
    pub async fn refused(&self, entry: Entry) {
        if let Err(error) = self.append(&entry).await {
            let mut waiting = self.waiting.lock();
            if waiting.len() < WAITING_MAX {
                waiting.push_back(entry);
                tracing::warn!(%error, rows = waiting.len(), "audit rows wait for the store");
            } else {
                tracing::error!(%error, ?entry, "audit row lost: too many wait for the store");
            }
        }
    }

    /// Rows of the audit log, newest first, and how many match.
    ///
    /// # Errors
    /// When the store cannot be read in time.
    pub async fn audit(&self, filter: &Filter) -> Result<(Vec<Recorded>, u64), HubError> {
        Ok(self.store.audit(filter).await?)
    }

    /// How many rows the log got since then.
    ///
    /// # Errors
    /// When the store cannot be read in time.
    pub async fn audit_rows_since(&self, since_unix_ms: u64) -> Result<u64, HubError> {
        let filter = Filter {
            from_unix_ms: Some(since_unix_ms),
            ..Filter::default()
        };
        Ok(self.store.audit(&filter).await?.1)
    }

    /// Records what is kept of the licence; `entry` says why.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn save_license(
        &self,
        record: &LicenseRecord,
        entry: Option<&Entry>,
    ) -> Result<(), HubError> {
        self.store.save_license(record, entry).await?;
        if let Some(entry) = entry {
            self.metrics.audited(entry);
        }
        Ok(())
    }

    /// Holds the log within `retention`, now and then again. Runs until dropped.
    pub async fn keep_audit(&self, retention: Retention) {
        loop {
            self.prune_audit(&retention).await;
            sleep(retention.every).await;
        }
    }

    async fn prune_audit(&self, retention: &Retention) {
        let before = retention
            .age_ms
            .map(|age_ms| self.now_ms().saturating_sub(age_ms));
        let mut gone = 0;
        loop {
            match self.store.prune_audit(before, retention.bytes).await {
                Ok(0) => break,
                Ok(rows) => gone += rows,
                Err(error) => {
                    tracing::warn!(%error, "audit rows cannot be pruned; trying again later");
                    break;
                }
            }
        }
        if gone > 0 {
            tracing::info!(rows = gone, "audit rows pruned");
        }
    }

    /// Writes rows that waited for the store.
    pub(super) async fn write_waiting(&self) -> Result<(), HubError> {
        loop {
            let Some(entry) = self.waiting.lock().front().cloned() else {
                return Ok(());
            };
            self.append(&entry).await?;
            self.waiting.lock().pop_front();
        }
    }

    async fn append(&self, entry: &Entry) -> Result<(), HubError> {
        self.store.append_audit(entry).await?;
        self.metrics.audited(entry);
        Ok(())
    }
}
