//! Our processes under watch: a WARN or ERROR that its test did not name fails the test.

use std::cell::RefCell;
use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use anyhow::Result;
use culvert_perf::testbed::{Namespace, Process, Spawn, Testbed};

/// What any of our processes may complain of in a testbed.
const ALWAYS: &[&str] = &["no --tls flags: both ports speak plain HTTP"];

/// What an agent says when its hub goes.
pub const HUB_GONE: &[&str] = &["\"session ended\"", "\"cannot connect to the hub\""];

/// What a data plane says when control goes.
pub const CONTROL_GONE: &[&str] = &["control is gone; the last state is served"];

/// One of our processes. When it is dropped, its log must hold no complaint but the expected ones.
/// Keep it in front of its testbed: a testbed that goes first ends the processes one by one.
pub struct Watched {
    process: Process,
    log: Arc<Log>,
    expected: Vec<&'static str>,
}

struct Log {
    /// Open, because the testbed's directory may go first.
    file: File,
    /// What is written from here on is of the test's own end.
    end: AtomicU64,
}

thread_local! {
    /// The logs of this test. A test that ends drops one process after the other; what the others
    /// say of that is no complaint.
    static LOGS: RefCell<Vec<Weak<Log>>> = const { RefCell::new(Vec::new()) };
}

impl Watched {
    /// Starts one of our binaries.
    pub fn start(spawn: Spawn, bed: &Testbed, at: &Namespace, name: &str) -> Result<Watched> {
        let process = spawn.start(bed, at, name)?;
        let log = Arc::new(Log {
            file: File::open(bed.path(&format!("{name}.log")))?,
            end: AtomicU64::new(u64::MAX),
        });
        LOGS.with_borrow_mut(|logs| {
            logs.retain(|log| log.strong_count() > 0);
            logs.push(Arc::downgrade(&log));
            // The test goes on: what was dropped before was part of it.
            for log in logs.iter().filter_map(Weak::upgrade) {
                log.end.store(u64::MAX, Ordering::Relaxed);
            }
        });
        Ok(Watched {
            process,
            log,
            expected: ALWAYS.to_vec(),
        })
    }

    /// Complaints that hold this text belong to the test.
    pub fn expect(&mut self, texts: &[&'static str]) {
        self.expected.extend_from_slice(texts);
    }

    /// Lines of WARN and ERROR, and lines that are none of the log's, that nobody expects.
    pub fn complaints(&self) -> Vec<String> {
        complaints(&self.log.read(), &self.expected)
    }
}

impl Log {
    fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.len())
    }

    fn read(&self) -> String {
        let length = self.end.load(Ordering::Relaxed).min(self.len());
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let read = self.file.read_exact_at(&mut bytes, 0);
        read.expect("a log that is only appended to");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn complaints(log: &str, expected: &[&str]) -> Vec<String> {
    log.lines()
        .filter(|line| {
            let level = serde_json::from_str::<serde_json::Value>(line)
                .ok()
                .and_then(|line| line["level"].as_str().map(str::to_owned));
            // What is no line of the log was written by a panic or by a library.
            level.is_none_or(|level| level == "warn" || level == "error")
        })
        .filter(|line| !expected.iter().any(|text| line.contains(text)))
        .map(str::to_owned)
        .collect()
}

impl Drop for Watched {
    fn drop(&mut self) {
        // One that ended before this was ended by the test itself.
        let is_end = self.process.status().is_none();
        LOGS.with_borrow(|logs| {
            for log in logs.iter().filter_map(Weak::upgrade).filter(|_| is_end) {
                let now = log.len();
                let _ =
                    log.end
                        .compare_exchange(u64::MAX, now, Ordering::Relaxed, Ordering::Relaxed);
            }
        });
        if !std::thread::panicking() {
            let found = self.complaints();
            assert!(found.is_empty(), "unexpected complaints: {found:#?}");
        }
    }
}

impl Deref for Watched {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Watched {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

#[test]
fn a_complaint_is_found_unless_it_is_expected() {
    let log = "{\"level\":\"info\",\"msg\":\"a\"}\n{\"level\":\"warn\",\"msg\":\"b\"}\n\
               {\"level\":\"error\",\"msg\":\"c\"}\nthread main panicked\n";
    assert_eq!(complaints(log, &[]).len(), 3);
    assert_eq!(
        complaints(log, &["\"b\"", "\"c\""]),
        ["thread main panicked"]
    );
}
