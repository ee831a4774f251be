//! The audit log of decisions.

use tokio::time::sleep;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_audit::Record;
use culvert_rpc::NotTaken;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Hub, HubError};
use crate::audit::{Entry, Filter, Recorded, Retention};
use crate::license::LicenseRecord;

/// Rows of refused changes that wait for a store that cannot write.
pub const WAITING_MAX: usize = 1_024;
/// Streams that one user follows at once.
pub const FOLLOWS_MAX: usize = 8;
/// Streams of all users at once: half of a listener's connections.
pub const FOLLOWS_ALL_MAX: usize = 64;
/// Rows that are printed at once.
const PRINTED: u32 = 500;
/// Rows to be printed are looked for this often.
const LOOK: Duration = Duration::from_secs(1);

/// Who follows the log, and the word that it grew.
#[derive(Default)]
pub(super) struct Followers {
    grew: watch::Sender<()>,
    by_user: Arc<Mutex<HashMap<String, usize>>>,
}

/// One stream that follows the log.
pub struct Follow {
    grew: watch::Receiver<()>,
    user: String,
    by_user: Arc<Mutex<HashMap<String, usize>>>,
}

impl Follow {
    /// Resolves when rows were recorded by this process since it was asked last.
    pub async fn news(&mut self) {
        if self.grew.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let mut by_user = self.by_user.lock();
        if let Some(streams) = by_user.get_mut(&self.user) {
            *streams -= 1;
            if *streams == 0 {
                by_user.remove(&self.user);
            }
        }
    }
}

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

    /// Takes records of a data plane for good; those it has already are not doubled.
    pub(super) async fn take_events(&self, records: &[bytes::Bytes]) -> Result<(), NotTaken> {
        let decoded: Result<Vec<_>, _> = records.iter().map(|it| Record::decode(it)).collect();
        let decoded = decoded.map_err(|why| {
            tracing::error!(%why, "a data plane's audit record cannot be read; it keeps it");
            NotTaken(why.to_string())
        })?;
        let started = Instant::now();
        let taken = self.store.take_events(&decoded).await;
        self.metrics
            .store("take_events", taken.is_ok(), started.elapsed());
        let rows = taken.map_err(|error| {
            tracing::warn!(%error, "audit records of a data plane wait for the store");
            NotTaken(error.to_string())
        })?;
        for row in &rows {
            self.metrics.request_audited(row);
        }
        self.followers.grew.send_replace(());
        Ok(())
    }

    /// A row was recorded.
    pub(super) fn audited(&self, entry: &Entry) {
        self.metrics.audited(entry);
        self.followers.grew.send_replace(());
    }

    /// One more stream of `user`; `None` when there are [`FOLLOWS_MAX`], or of all users
    /// [`FOLLOWS_ALL_MAX`].
    #[must_use]
    pub fn stream(&self, user: &str) -> Option<Follow> {
        let by_user = self.followers.by_user.clone();
        let mut counts = by_user.lock();
        if counts.values().sum::<usize>() >= FOLLOWS_ALL_MAX {
            return None;
        }
        let streams = counts.entry(user.to_owned()).or_default();
        if *streams >= FOLLOWS_MAX {
            return None;
        }
        *streams += 1;
        drop(counts);
        Some(Follow {
            grew: self.followers.grew.subscribe(),
            user: user.to_owned(),
            by_user,
        })
    }

    /// Rows behind `seq`, oldest first, at most [`Filter::limit`].
    ///
    /// # Errors
    /// When the store cannot be read in time.
    pub async fn audit_since(&self, filter: &Filter, seq: i64) -> Result<Vec<Recorded>, HubError> {
        Ok(self.store.audit_since(filter, seq).await?)
    }

    /// The number of the newest row; 0 where there is none.
    ///
    /// # Errors
    /// When the store cannot be read in time.
    pub async fn audit_newest(&self) -> Result<i64, HubError> {
        Ok(self.store.audit_newest().await?)
    }

    /// Gives `print` each row that is recorded from now on. Runs until dropped.
    pub async fn print_audit(&self, print: impl Fn(Recorded)) {
        let mut grew = self.followers.grew.subscribe();
        let filter = Filter {
            limit: PRINTED,
            ..Filter::default()
        };
        let mut last = None;
        loop {
            let rows = match last {
                Some(last) => self.audit_since(&filter, last).await,
                None => self.audit_newest().await.map(|newest| {
                    last = Some(newest);
                    Vec::new()
                }),
            };
            let rows = rows.unwrap_or_else(|error| {
                tracing::warn!(%error, "audit rows cannot be read to be printed; trying again");
                Vec::new()
            });
            let is_full = rows.len() == PRINTED as usize;
            for row in rows {
                last = Some(row.seq);
                print(row);
            }
            if !is_full {
                let _ = timeout(LOOK, grew.changed()).await;
            }
        }
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
            self.audited(entry);
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
        self.audited(entry);
        Ok(())
    }
}
