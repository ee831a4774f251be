//! From the spool to control.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use culvert_audit::{Record, Stretch, payloads};
use culvert_rpc::{Batch, Outbox};

use super::{Shared, disk};

/// A spool that cannot be read is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// What the link takes.
pub struct Mail {
    shared: Arc<Shared>,
    /// Control took nothing: said once.
    refusing: AtomicBool,
}

impl Mail {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            refusing: AtomicBool::new(false),
        }
    }

    async fn batch(&self) -> Batch {
        let mut grew = self.shared.grew.subscribe();
        loop {
            grew.mark_unchanged();
            let from = self.shared.window.lock().next();
            let found = from.and_then(|from| {
                let stretch = self.shared.book.lock().stretch(from)?;
                Some((from, stretch))
            });
            let Some((from, stretch)) = found else {
                // The sender lives as long as this.
                let _ = grew.changed().await;
                continue;
            };
            match self.read(stretch).await {
                Ok(records) => {
                    let end = from + records.len() as u64;
                    self.shared.window.lock().sent(end);
                    return Batch { end, records };
                }
                Err(why) => {
                    tracing::error!(%why, segment = stretch.number, "the audit spool cannot be read");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn read(&self, stretch: Stretch) -> Result<Vec<Bytes>, String> {
        let dir = self.shared.dir.clone().unwrap_or_default();
        let reading = tokio::task::spawn_blocking(move || {
            let Stretch {
                number,
                offset,
                end,
                ..
            } = stretch;
            let bytes = disk::read(&dir, number, offset, end).map_err(|why| why.to_string())?;
            let bytes = Bytes::from(bytes);
            let found = payloads(&bytes, stretch.salt)
                .filter(|(_, record)| !matches!(Record::decode(record), Ok(Record::Carried { .. })))
                .skip(usize::try_from(stretch.skip).unwrap_or(usize::MAX))
                .map(|(_, record)| bytes.slice_ref(record));
            match found.collect::<Vec<_>>() {
                none if none.is_empty() => Err("its records are damaged".to_owned()),
                found => Ok(found),
            }
        });
        reading.await.map_err(|why| why.to_string())?
    }
}

impl Outbox for Mail {
    fn restart(&self) {
        self.shared.window.lock().restart();
    }

    fn next(&self) -> Pin<Box<dyn Future<Output = Batch> + Send + '_>> {
        Box::pin(self.batch())
    }

    fn acked(&self, end: u64) -> Result<(), String> {
        let acked = self.shared.window.lock().acked(end);
        acked.map_err(|why| why.to_string())?;
        let (done, waiting) = {
            let mut book = self.shared.book.lock();
            (book.ack(end), book.waiting_bytes())
        };
        self.shared.shares.shipped(waiting);
        if self.refusing.swap(false, Ordering::Relaxed) {
            tracing::info!("control takes audit records again");
        }
        if let Some(disk) = self.shared.disk.get() {
            disk.note(end);
            if !done.is_empty() {
                let disk = disk.clone();
                tokio::task::spawn_blocking(move || {
                    done.into_iter().for_each(|number| disk.delete(number));
                });
            }
        }
        // There is room for another batch.
        self.shared.grew.send_replace(());
        Ok(())
    }

    fn refused(&self, why: &str) {
        let waiting = self.shared.book.lock().waiting_bytes();
        if waiting == 0 || self.refusing.swap(true, Ordering::Relaxed) {
            tracing::debug!(why, "control takes no audit records");
        } else {
            tracing::warn!(
                why,
                bytes = waiting,
                "control takes no audit records; they stay in the spool"
            );
        }
    }
}
