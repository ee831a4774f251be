//! Readiness by io_uring: one submission for each socket, an event for each
//! edge. The calls themselves stay direct (performance.md 2.4 and 2.5).
#![allow(
    unsafe_code,
    reason = "io-uring leaves it to its callers that what an entry points at outlives it"
)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::pair::Readiness;
use crate::poll::{Event, readiness};

/// Entries of the submission and of the completion queue.
const SUBMISSIONS: u32 = 4096;
const COMPLETIONS: u32 = 16_384;
/// The token of completions that nobody waits for.
const NOBODY: u64 = u64::MAX - 1;

/// A ring that polls.
pub struct Ring {
    ring: IoUring,
}

impl Ring {
    /// With the best set-up that the kernel has.
    ///
    /// # Errors
    /// When it has none that does.
    pub fn new() -> io::Result<Self> {
        let builder = || {
            let mut builder = IoUring::builder();
            builder.setup_cqsize(COMPLETIONS);
            builder
        };
        let is_old = |why: &io::Error| why.raw_os_error() == Some(Errno::INVAL.raw_os_error());
        let mut best = builder();
        best.setup_single_issuer().setup_defer_taskrun();
        let ring = match best.build(SUBMISSIONS) {
            Err(why) if is_old(&why) => {
                let mut good = builder();
                good.setup_coop_taskrun();
                match good.build(SUBMISSIONS) {
                    Err(why) if is_old(&why) => builder().build(SUBMISSIONS)?,
                    built => built?,
                }
            }
            built => built?,
        };
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::PollAdd::CODE, opcode::AsyncCancel::CODE];
        let complete = needed.iter().all(|code| probe.is_supported(*code));
        // Without EXT_ARG a wait has no timeout, without NODROP events are lost.
        let params = ring.params();
        if !complete || !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
            return Err(Errno::NOSYS.into());
        }
        Ok(Self { ring })
    }

    /// Polls `fd` until it is removed.
    ///
    /// # Errors
    /// When the queue is full and the kernel takes nothing from it.
    pub fn add(&mut self, fd: BorrowedFd<'_>, flags: u32, token: u64) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), flags).multi(true);
        self.push(&entry.build().user_data(token))
    }

    /// Ends the poll of `token`.
    ///
    /// # Errors
    /// See [`add`](Self::add).
    pub fn remove(&mut self, token: u64) -> io::Result<()> {
        // POLL_REMOVE leaves a poll alone (EALREADY) whose event is on its way; the
        // file would stay open and the peer would see no end.
        self.push(&opcode::AsyncCancel::new(token).build().user_data(NOBODY))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: polls and their removals hold a number and no pointer.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            ignore_busy(self.ring.submit())?;
        }
        Ok(())
    }

    /// See [`Poll::wait`](crate::poll::Poll::wait).
    ///
    /// # Errors
    /// The operating system's.
    pub fn wait(&mut self, timeout: Option<Duration>, into: &mut Vec<Event>) -> io::Result<()> {
        // Also with nothing to wait for: deferred work runs in this call.
        match timeout {
            None => ignore_busy(self.ring.submit_and_wait(1))?,
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timeout);
                ignore_busy(self.ring.submitter().submit_with_args(1, &args))?;
            }
        }
        for done in self.ring.completion() {
            into.extend(event(done.user_data(), done.result(), done.flags()));
        }
        Ok(())
    }
}

fn event(token: u64, result: i32, flags: u32) -> Option<Event> {
    if token == NOBODY || result == -Errno::CANCELED.raw_os_error() {
        return None;
    }
    let told = match u32::try_from(result) {
        Ok(bits) => readiness(EventFlags::from_bits_retain(bits)),
        Err(_) => Readiness {
            error: true,
            ..Readiness::default()
        },
    };
    let ended = !cqueue::more(flags);
    Some(Event { token, told, ended })
}

/// A wait that timed out or was interrupted, and a completion queue that must
/// be emptied first, are no errors.
fn ignore_busy(submitted: io::Result<usize>) -> io::Result<()> {
    let code = match submitted {
        Ok(_) => return Ok(()),
        Err(why) => why.raw_os_error().ok_or(why)?,
    };
    match Errno::from_raw_os_error(code) {
        Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN => Ok(()),
        why => Err(why.into()),
    }
}
