//! The one writer of the spool. Records that come while the disk syncs share the
//! next sync.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use culvert_audit::{Piece, Place, Record, Window};
use culvert_engine::Backend;
use culvert_net::crypto::random_bytes;
use tokio::sync::oneshot;

use super::disk::Disk;
use super::{Audit, Queue, Shared, Unkept, Waiting};
use crate::launch::{StartError, Started, spawn};
use crate::plane::unix_ms;
use crate::runtime::DurableFile;

/// Ends that a failing disk could not take are tried again this often.
const RETRY: Duration = Duration::from_secs(1);

/// The writer.
pub struct Spool {
    shared: Arc<Shared>,
    disk: Arc<Disk>,
    /// The segment that is written, by its number.
    file: Option<(u64, DurableFile)>,
    /// Ends that wait for a disk that works.
    kept_back: Vec<Piece>,
}

type Told = oneshot::Sender<Result<(), Unkept>>;

/// Opens the spool of `audit`, if it has one, and starts its writer.
///
/// # Errors
/// When another data plane writes there, or a thread cannot be started. Any other
/// failure refuses audited requests, and nothing else.
pub fn start(audit: &Audit, backend: Backend) -> Result<Option<JoinHandle<()>>, StartError> {
    let shared = audit.shared.clone();
    let Some(dir) = shared.dir.clone() else {
        return Ok(None);
    };
    let limits = shared.book.lock().limits();
    let opened = Disk::open(&dir, backend).and_then(|disk| Ok((disk.recover(limits)?, disk)));
    let (book, disk) = match opened {
        Ok(opened) => opened,
        Err(why) if why.kind() == io::ErrorKind::AddrInUse => {
            let place = dir.display();
            return Err(StartError::Config(format!("--audit-dir {place}: {why}")));
        }
        Err(why) => {
            let dir = dir.display();
            tracing::error!(%why, %dir, "the audit spool cannot be opened: audited requests are refused");
            return Ok(None);
        }
    };
    let (waiting, open) = (book.next() - book.acked(), book.open());
    if waiting + open as u64 > 0 {
        tracing::info!(records = waiting, open, "audit spool taken over");
    }
    let unknown = book.unknown_ends(unix_ms());
    shared.shares.shipped(book.waiting_bytes());
    *shared.window.lock() = Window::new(book.acked());
    *shared.book.lock() = book;
    for ended in unknown {
        let _ = shared.push(&Record::Ended(ended), None);
    }
    let disk = Arc::new(disk);
    let _ = shared.disk.set(disk.clone());
    // Made on its thread: a file of a ring stays on one.
    let writer = move |started| {
        let spool = Spool {
            shared,
            disk,
            file: None,
            kept_back: Vec::new(),
        };
        spool.run(started)
    };
    spawn("audit", backend, writer).map(Some)
}

impl Spool {
    /// Writes until the data plane ends.
    async fn run(mut self, started: Started) -> Result<(), StartError> {
        let _ = started.send(Ok(()));
        loop {
            let (pieces, told) = self.next();
            if !pieces.is_empty() {
                self.write(pieces, told).await;
                continue;
            }
            if self.shared.closing.load(Ordering::Acquire) {
                return Ok(());
            }
            let woken = self.shared.wake.notified();
            match self.kept_back.is_empty() {
                true => woken.await,
                false => {
                    let _ = tokio::time::timeout(RETRY, woken).await;
                    self.retry().await;
                }
            }
        }
    }

    /// Records that go to the disk together.
    fn next(&mut self) -> (Vec<Piece>, Vec<(usize, Told)>) {
        let most = self.shared.book.lock().limits().group_bytes();
        let mut queue = self.shared.queue.lock();
        let (mut pieces, mut told, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(waiting) = queue.pop(most - bytes) {
            bytes += waiting.piece.bytes();
            told.extend(waiting.told.map(|told| (pieces.len(), told)));
            pieces.push(waiting.piece);
        }
        (pieces, told)
    }

    async fn write(&mut self, pieces: Vec<Piece>, told: Vec<(usize, Told)>) {
        let wrote = self.put(&pieces).await;
        let Err(why) = wrote else {
            for (_, told) in told {
                let _ = told.send(Ok(()));
            }
            return;
        };
        for (_, told) in told {
            let _ = told.send(Err(why.clone()));
        }
        // Attempts were refused; ends of others have to be written all the same.
        let (attempts, ends): (Vec<_>, _) = pieces.into_iter().partition(Piece::is_attempt);
        if !ends.is_empty() && (attempts.is_empty() || self.put(&ends).await.is_err()) {
            self.kept_back.extend(ends);
        }
    }

    async fn retry(&mut self) {
        let ends = std::mem::take(&mut self.kept_back);
        for group in ends.chunks(512) {
            if self.put(group).await.is_err() {
                self.kept_back.extend_from_slice(group);
            }
        }
    }

    /// Makes a group durable.
    async fn put(&mut self, pieces: &[Piece]) -> Result<(), Unkept> {
        let salt = u32::from_be_bytes(random_bytes());
        let (place, bytes, segment_bytes) = {
            let book = self.shared.book.lock();
            let place = book.place(pieces)?;
            let bytes = book.layout(place, salt, pieces);
            (place, bytes, book.limits().segment_bytes)
        };
        let began = Instant::now();
        let wrote = self.append(place, bytes, segment_bytes).await;
        let seconds = began.elapsed().as_secs_f64();
        self.shared.metrics.sync_seconds.observe(seconds);
        match wrote {
            Ok(()) => {
                self.shared.book.lock().commit(place, salt, pieces);
                self.shared.grew.send_replace(());
                Ok(())
            }
            Err(why) => {
                let gone = self.shared.book.lock().broken(place);
                if let Some(number) = gone {
                    self.disk.delete(number);
                }
                tracing::debug!(%why, "the audit spool cannot be written");
                Err(Unkept::Disk(why.to_string().into()))
            }
        }
    }

    async fn append(&mut self, place: Place, bytes: Vec<u8>, room: u64) -> io::Result<()> {
        match place {
            Place::New { number } => {
                let file = self.disk.create(number, room).await?;
                file.append(bytes, 0).await?;
                self.file = Some((number, file));
                Ok(())
            }
            Place::Here { number, offset } => {
                let open = self.file.take().filter(|(open, _)| *open == number);
                let (_, file) = open.ok_or_else(|| io::Error::other("another segment is open"))?;
                // One that failed is never written again.
                file.append(bytes, offset).await?;
                self.file = Some((number, file));
                Ok(())
            }
        }
    }
}

impl Queue {
    /// The next one, if it has no more bytes than that.
    fn pop(&mut self, bytes_max: u64) -> Option<Waiting> {
        let first = self.waiting.front()?;
        if first.piece.bytes() > bytes_max {
            return None;
        }
        let waiting = self.waiting.pop_front()?;
        self.attempts -= usize::from(waiting.piece.is_attempt());
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuditConfig, WhenFull};
    use crate::metrics::AuditMetrics;
    use crate::runtime::probe;
    use culvert_audit::{Actor, Attempted, EventId, Limits, Resource, SPOOL_BYTES_MIN, Verb};
    use culvert_engine::IoEngine;
    use culvert_proto::id::RequestId;
    use culvert_telemetry::metrics::Metrics;

    fn attempted(number: u64) -> Attempted {
        let mut id = [0; 16];
        id[8..].copy_from_slice(&number.to_be_bytes());
        Attempted {
            id: EventId(id),
            time_unix_ms: unix_ms(),
            request_id: RequestId(id),
            verb: Verb::Apply,
            actor: Actor::default(),
            transport: "tunnel".into(),
            route: "POST /tunnel/a/x".into(),
            cluster: "a".into(),
            resource: Resource::default(),
        }
    }

    fn audit(dir: &std::path::Path, when_full: WhenFull) -> Audit {
        let config = AuditConfig {
            dir: Some(dir.to_owned()),
            spool_bytes: SPOOL_BYTES_MIN,
            when_full,
        };
        Audit::new(&config, AuditMetrics::new(&Metrics::new()))
    }

    #[test]
    fn requests_that_come_together_share_a_sync_and_are_there_after_it() {
        for engine in [IoEngine::Epoll, IoEngine::Auto] {
            let backend = probe(engine).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let audit = audit(dir.path(), WhenFull::Refuse);
            let writer = start(&audit, backend).unwrap().unwrap();
            let second = self::audit(dir.path(), WhenFull::Refuse);
            assert!(start(&second, backend).is_err(), "one writer at a time");
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            let events = runtime.block_on(async {
                let all = (0..256).map(|number| audit.attempt(attempted(number)));
                futures_util::future::join_all(all).await
            });
            let events: Vec<_> = events.into_iter().map(|it| it.unwrap().unwrap()).collect();
            let syncs = audit.shared.metrics.sync_seconds.count();
            assert!((1..128).contains(&syncs), "{syncs} syncs for 256 attempts");
            let limits = Limits::of(SPOOL_BYTES_MIN);
            let copy = tempfile::tempdir().unwrap();
            for entry in std::fs::read_dir(dir.path()).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
            // As a process finds it that starts after a kill now.
            let killed = Disk::open(copy.path(), backend).unwrap().recover(limits);
            assert_eq!(killed.unwrap().open(), 256);
            drop(events);
            audit.close();
            writer.join().unwrap();
            drop(audit);
            let book = Disk::open(dir.path(), backend).unwrap().recover(limits);
            let book = book.unwrap();
            assert_eq!(
                (book.open(), book.next()),
                (0, 512),
                "every end was written"
            );
        }
    }

    #[test]
    fn a_caller_who_fills_the_spool_is_refused_and_others_are_not() {
        let backend = probe(IoEngine::Epoll).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let audit = audit(dir.path(), WhenFull::Refuse);
        let writer = start(&audit, backend).unwrap().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let of = |caller: &str, number| {
            let mut attempted = attempted(number);
            attempted.actor.sub = caller.to_owned();
            // Long ones: fewer of them fill the spool.
            attempted.route = "POST /".to_owned() + &"x".repeat(4_000);
            audit.attempt(attempted)
        };
        let (mut kept, mut number) = (0, 0);
        let why = loop {
            number += 64;
            let group = (number..number + 64).map(|number| of("flood", number));
            let group = runtime.block_on(futures_util::future::join_all(group));
            kept += group.iter().filter(|it| it.is_ok()).count();
            if let Some(why) = group.into_iter().find_map(Result::err) {
                break why;
            }
        };
        assert_eq!(why, Unkept::Share);
        let bytes = audit.shared.book.lock().waiting_bytes();
        assert!(
            bytes > SPOOL_BYTES_MIN / 8 && kept > 10,
            "{kept} records, {bytes} bytes"
        );
        assert!(runtime.block_on(of("ana", 0)).is_ok());
        let again = runtime.block_on(of("flood", 1));
        assert_eq!(again.err(), Some(Unkept::Share));
        audit.close();
        writer.join().unwrap();
    }

    #[test]
    fn without_a_directory_requests_are_refused_or_go_on_as_set() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "in the way").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let backend = probe(IoEngine::Epoll).unwrap();
        for when_full in [WhenFull::Refuse, WhenFull::Warn] {
            let audit = audit(&file, when_full);
            assert!(start(&audit, backend).unwrap().is_none());
            let seen = runtime.block_on(audit.attempt(attempted(1)));
            match when_full {
                WhenFull::Refuse => assert_eq!(seen.err(), Some(Unkept::None)),
                WhenFull::Warn => assert!(seen.unwrap().is_none()),
            }
        }
    }
}
