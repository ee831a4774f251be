//! Audited requests: a durable record before one is forwarded, another at its end.
//!
//! Requests hand their records over and wait; one thread writes and syncs the spool
//! ([`spool`]), and what was synced is shipped to control ([`outbox`]). No request
//! waits for control.

mod disk;
mod event;
mod outbox;
mod share;
mod spool;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use culvert_audit::{Attempted, Book, Limits, Piece, Record, Window};
use culvert_proto::answer::error_status;
use culvert_proto::close::CloseReason;

use crate::config::{AuditConfig, WhenFull};
use crate::metrics::AuditMetrics;
use crate::plane::{gauge, unix_ms};

pub use event::{Counts, Event};
pub use outbox::Mail;
use share::Shares;
pub use spool::start;

/// Attempts that wait for the disk at once; further ones are refused.
pub const WAITING_MAX: usize = 16_384;
/// Refused requests that leave rows, in a minute.
const DENIED_MAX: u32 = 600;
/// A request waits for its record to be durable at most this long.
const SYNC_MAX: Duration = Duration::from_secs(2);

/// Why a record is not durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unkept {
    /// There is no spool.
    #[error("this data plane keeps no audit spool; give --audit-dir or --state-dir")]
    None,
    /// The spool is full.
    #[error("{0}")]
    Full(#[from] culvert_audit::Full),
    /// Half of the spool waits for control, a quarter of it is this caller's.
    #[error("the audit spool is half full, a quarter of it with requests of this caller")]
    Share,
    /// Too many wait.
    #[error("{WAITING_MAX} audited requests wait for the disk")]
    Busy,
    /// The disk failed.
    #[error("the audit spool cannot be written: {0}")]
    Disk(Arc<str>),
    /// The disk is too slow.
    #[error("the audit spool's disk took longer than 2 s")]
    Slow,
}

impl Unkept {
    /// The word in metrics.
    fn as_str(&self) -> &'static str {
        match self {
            Self::None => "no_spool",
            Self::Full(_) => "full",
            Self::Share => "share",
            Self::Busy => "busy",
            Self::Disk(_) => "disk",
            Self::Slow => "slow",
        }
    }
}

/// What requests need of the audit.
pub struct Audit {
    when_full: WhenFull,
    /// Refused people.
    denied: Minute,
    /// Refused machines; they take no row from people.
    turned_away: Minute,
    shared: Arc<Shared>,
}

/// How many rows of refusals there were in the minute of that number.
#[derive(Default)]
struct Minute(Mutex<(u64, u32)>);

impl Minute {
    fn admits(&self, now_unix_ms: u64) -> bool {
        let (minute, rows) = &mut *self.0.lock();
        if *minute != now_unix_ms / 60_000 {
            (*minute, *rows) = (now_unix_ms / 60_000, 0);
        }
        *rows = rows.saturating_add(1);
        *rows <= DENIED_MAX
    }
}

/// What requests, the writer and the link share.
struct Shared {
    dir: Option<PathBuf>,
    queue: Mutex<Queue>,
    /// Something waits to be written, or nothing more will.
    wake: Notify,
    closing: AtomicBool,
    book: Mutex<Book>,
    shares: Shares,
    window: Mutex<Window>,
    /// Raised with each record that is durable, and each word of control.
    grew: watch::Sender<()>,
    metrics: AuditMetrics,
    /// Once it is open.
    disk: OnceLock<Arc<disk::Disk>>,
    /// The last one could not be kept: said once.
    failing: AtomicBool,
}

/// Records that wait for the disk. Ends are bounded by the attempts before them.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    attempts: usize,
}

struct Waiting {
    piece: Piece,
    /// Whoever waits for it.
    told: Option<oneshot::Sender<Result<(), Unkept>>>,
}

impl Audit {
    /// Without a spool yet: [`start`] opens it.
    pub fn new(config: &AuditConfig, metrics: AuditMetrics) -> Self {
        metrics.limit_bytes.set(gauge(config.spool_bytes));
        let limits = Limits::of(config.spool_bytes);
        Self {
            when_full: config.when_full,
            denied: Minute::default(),
            turned_away: Minute::default(),
            shared: Arc::new(Shared {
                dir: config.dir.clone(),
                queue: Mutex::default(),
                wake: Notify::new(),
                closing: AtomicBool::new(false),
                book: Mutex::new(Book::new(limits)),
                shares: Shares::new(config.spool_bytes),
                window: Mutex::default(),
                grew: watch::Sender::new(()),
                metrics,
                disk: OnceLock::new(),
                failing: AtomicBool::new(false),
            }),
        }
    }

    /// Makes the record of a request durable before it is forwarded. `None`: the request
    /// goes on without one, as the operator said.
    ///
    /// # Errors
    /// Why the request is not forwarded.
    pub async fn attempt(&self, attempted: Attempted) -> Result<Option<Event>, Unkept> {
        let (told, written) = oneshot::channel();
        let (id, verb) = (attempted.id, attempted.verb);
        let kept = match self.shared.push(&Record::Attempted(attempted), Some(told)) {
            Ok(()) => {
                // From here on the record may be there, whatever becomes of the request.
                let event = Event::new(self.shared.clone(), id, verb);
                match tokio::time::timeout(SYNC_MAX, written).await {
                    Ok(Ok(Ok(()))) => Ok(event),
                    Ok(Ok(Err(why))) => Err((why, event.forget())),
                    Ok(Err(_)) => Err((Unkept::None, event.forget())),
                    Err(_) => Err((Unkept::Slow, Some(event))),
                }
            }
            Err(why) => Err((why, None)),
        };
        let (why, event) = match kept {
            Ok(event) => {
                self.shared.failing.store(false, Ordering::Relaxed);
                return Ok(Some(event));
            }
            Err(unkept) => unkept,
        };
        self.unkept(&why);
        match self.when_full {
            WhenFull::Warn => Ok(event),
            WhenFull::Refuse => {
                if let Some(mut event) = event {
                    event.ends(CloseReason::AuditUnavailable);
                }
                Err(why)
            }
        }
    }

    /// Records that a request was refused here, unless too many were in this minute: who may
    /// do nothing does not fill the spool either.
    pub fn denied(&self, attempted: Attempted, reason: CloseReason) {
        self.refused(&self.denied, attempted, reason);
    }

    /// The same of a machine.
    pub fn turned_away(&self, attempted: Attempted, reason: CloseReason) {
        self.refused(&self.turned_away, attempted, reason);
    }

    fn refused(&self, minute: &Minute, attempted: Attempted, reason: CloseReason) {
        let unrecorded = &self.shared.metrics.unrecorded;
        if !minute.admits(attempted.time_unix_ms) {
            return unrecorded.with_label_values(&["denied_flood"]).inc();
        }
        let (id, verb) = (attempted.id, attempted.verb);
        match self.shared.push(&Record::Attempted(attempted), None) {
            Ok(()) => {
                let mut event = Event::new(self.shared.clone(), id, verb);
                event.answered(error_status(reason));
                event.ends(reason);
            }
            Err(why) => unrecorded.with_label_values(&[why.as_str()]).inc(),
        }
    }

    /// Ready for the link to control; `None` without a spool.
    pub fn mail(&self) -> Option<Arc<Mail>> {
        let shared = self.shared.dir.is_some().then(|| self.shared.clone())?;
        Some(Arc::new(Mail::new(shared)))
    }

    /// Nothing more comes: the writer writes what waits, and ends.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }

    /// Fills the gauges that are only known at scrape time.
    pub fn refresh(&self) {
        let Shared { book, metrics, .. } = &*self.shared;
        let (waiting, oldest) = {
            let book = book.lock();
            (book.waiting_bytes(), book.oldest_unix_ms())
        };
        metrics.bytes.set(gauge(waiting));
        let age_ms = oldest.map_or(0, |since| unix_ms().saturating_sub(since));
        metrics.oldest_seconds.set(gauge(age_ms / 1000));
    }

    fn unkept(&self, why: &Unkept) {
        let metrics = &self.shared.metrics;
        let goes_on = self.when_full == WhenFull::Warn;
        let counter = match goes_on {
            true => &metrics.unrecorded,
            false => &metrics.refused,
        };
        counter.with_label_values(&[why.as_str()]).inc();
        if *why == Unkept::Share {
            // Of one caller, who is told so: the spool takes the records of others.
            tracing::debug!(%why, "an audited request");
        } else if !self.shared.failing.swap(true, Ordering::Relaxed) {
            let word = if goes_on {
                "go on unrecorded"
            } else {
                "are refused"
            };
            tracing::warn!(%why, "audited requests {word} until the audit spool takes records again");
        }
    }
}

impl Shared {
    fn push(
        &self,
        record: &Record,
        told: Option<oneshot::Sender<Result<(), Unkept>>>,
    ) -> Result<(), Unkept> {
        let Some(piece) = Piece::of(record) else {
            return Ok(());
        };
        let mut queue = self.queue.lock();
        if let Record::Attempted(attempted) = record {
            if self.disk.get().is_none() {
                return Err(Unkept::None);
            }
            if queue.attempts >= WAITING_MAX {
                return Err(Unkept::Busy);
            }
            // Its end has no more bytes than that.
            if !self.shares.take(&attempted.actor.sub, 2 * piece.bytes()) {
                return Err(Unkept::Share);
            }
            queue.attempts += 1;
        }
        queue.waiting.push_back(Waiting { piece, told });
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_leaves_so_many_rows_a_minute() {
        let minute = Minute::default();
        let admitted = |now_ms| (0..2_000).filter(|_| minute.admits(now_ms)).count();
        assert_eq!(admitted(60_000), DENIED_MAX as usize);
        assert_eq!(admitted(119_999), 0);
        assert_eq!(admitted(120_000), DENIED_MAX as usize);
    }
}
