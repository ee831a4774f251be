//! The trace programs: loaded at the start, linked for as long as someone looks. They hook the
//! whole host, so that every socket of it pays while they are linked.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::programs::tp_btf::BtfTracePointLink;
use aya::programs::{Program, ProgramError};
use culvert_abi::{Ident, wait};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::clusters::ClusterIndex;
use crate::kernel::Kernel;
use crate::observer::Observer;
use crate::report::Trace;

/// Why no trace runs.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// There is nothing to link.
    #[error("trace is not available: {0}; set ebpf.trace=true and grant CAP_PERFMON")]
    Unavailable(String),
    /// One runs already.
    #[error("a trace runs already; wait for its end")]
    Busy,
    /// The kernel refused.
    #[error("trace could not be linked: {0}")]
    Refused(#[from] ProgramError),
}

/// Whose sockets are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traced {
    /// All that are tagged.
    All,
    /// Those of a cluster.
    Cluster(ClusterIndex),
}

/// Which trace a socket is looked at for, if it is; two of the same kind follow each other by a
/// few others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark(u32);

/// What the process knows of its trace.
#[derive(Default)]
pub(crate) struct Running {
    links: Mutex<Vec<BtfTracePointLink>>,
    /// The trace's mark in the upper half, 0 = none runs; below it the cluster, or [`EVERY`].
    now: AtomicU32,
    /// How many there were.
    count: AtomicU32,
}

const EVERY: u32 = 0xffff;

/// A trace. It ends when it is dropped.
#[must_use]
pub struct Tracing(Observer);

impl Drop for Tracing {
    fn drop(&mut self) {
        if let Some(kernel) = &self.0.shared.kernel {
            kernel.trace.now.store(0, Ordering::Relaxed);
            kernel.trace.links.lock().clear();
        }
    }
}

impl Running {
    fn mark(&self, cluster: u16) -> Mark {
        let now = self.now.load(Ordering::Relaxed);
        let whose = now & EVERY;
        match whose == EVERY || whose == u32::from(cluster) {
            true => Mark(now >> 16),
            false => Mark(0),
        }
    }

    /// The flags of a socket of `cluster`.
    pub fn flags(&self, flags: u16, cluster: u16) -> u16 {
        Ident::for_trace(flags, self.mark(cluster).0)
    }
}

impl Observer {
    /// Links the trace programs, for sockets that are tagged or [marked](Self::follow_trace) from
    /// now on, and resets of all that are tagged.
    ///
    /// # Errors
    /// When there is nothing to link, one runs, or the kernel refuses.
    pub fn begin_trace(&self, of: Traced) -> Result<Tracing, TraceError> {
        let (ready, kernel) = match (&self.report().trace, &self.shared.kernel) {
            (Trace::Ready(ready), Some(kernel)) => (ready, kernel),
            (Trace::Unavailable(why), _) => return Err(TraceError::Unavailable(why.clone())),
            _ => {
                return Err(TraceError::Unavailable(
                    "it was not asked for at the start".to_owned(),
                ));
            }
        };
        let mut links = kernel.trace.links.lock();
        if !links.is_empty() {
            return Err(TraceError::Busy);
        }
        *links = link(kernel, ready)?;
        let nth = kernel.trace.count.fetch_add(1, Ordering::Relaxed);
        let mark = nth % wait::MARKS + 1;
        let whose = match of {
            Traced::All => EVERY,
            Traced::Cluster(index) => u32::from(index.number()),
        };
        kernel
            .trace
            .now
            .store(mark << 16 | whose, Ordering::Relaxed);
        Ok(Tracing(self.clone()))
    }

    /// Whether the trace programs are linked.
    pub fn is_tracing(&self) -> bool {
        let kernel = self.shared.kernel.as_ref();
        kernel.is_some_and(|it| !it.trace.links.lock().is_empty())
    }

    /// Which trace sockets of a cluster are to be looked at for: whoever owns one compares it with
    /// what it was when the socket was tagged.
    pub fn mark(&self, cluster: ClusterIndex) -> Mark {
        let kernel = self.shared.kernel.as_ref();
        kernel.map_or_else(Mark::default, |it| it.trace.mark(cluster.number()))
    }

    /// Has a socket that was tagged before looked at for the trace that runs now, or for none; call
    /// it on the thread that owns the descriptor. Tells whether it is looked at.
    pub fn follow_trace(&self, socket: BorrowedFd<'_>) -> bool {
        let Some(kernel) = &self.shared.kernel else {
            return false;
        };
        let mut ident = match kernel.ident.lookup(socket) {
            Ok(ident) => Ident::from_bytes(&ident),
            // Nobody's.
            Err(Errno::NOENT) => return false,
            Err(why) => {
                self.failed("trace", why);
                return false;
            }
        };
        self.write("trace", socket, &mut ident) && Ident::traced_by(ident.flags) != 0
    }
}

fn link(kernel: &Kernel, ready: &[&'static str]) -> Result<Vec<BtfTracePointLink>, TraceError> {
    let mut programs = kernel.programs.lock();
    let mut links = Vec::new();
    for name in ready {
        let Some(Program::BtfTracePoint(program)) = programs.program_mut(name) else {
            continue;
        };
        let id = program.attach()?;
        links.push(program.take_link(id)?);
    }
    Ok(links)
}
