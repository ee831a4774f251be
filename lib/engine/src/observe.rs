//! Who watches a pair does so on the thread that owns its sockets: a descriptor
//! means what it meant only there.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use culvert_proto::close::CloseReason;

use crate::inbox::{Command, Inbox, Live};

/// Looks at pairs between two rounds of an engine thread.
pub(crate) const VISITS_MAX: usize = 64;

/// Watches the two sockets of one pair: the client's, then the service's.
/// Nothing that it does may wait.
pub trait Observe: Send {
    /// Before the first byte.
    fn joined(&mut self, sockets: [BorrowedFd<'_>; 2]);
    /// Every [`SAMPLE_INTERVAL`](crate::legs::SAMPLE_INTERVAL).
    fn sample(&mut self, sockets: [BorrowedFd<'_>; 2]);
    /// Before both are closed.
    fn ended(&mut self, sockets: [BorrowedFd<'_>; 2], reason: CloseReason);
}

/// What is done with the sockets of a pair.
type Look = Box<dyn FnOnce([BorrowedFd<'_>; 2]) + Send>;

/// Leads to a pair for as long as it lives.
#[derive(Clone)]
pub struct Handle {
    /// Its counters.
    pub live: Arc<Live>,
    pub(crate) inbox: Arc<Inbox>,
}

/// A look at a pair that somebody waits for.
pub(crate) struct Visit {
    pub live: Arc<Live>,
    pub look: Look,
}

impl Handle {
    /// Shows `look` the pair's sockets on their thread, soon; drops it when the
    /// pair has ended. It delays the thread's other pairs: read, and return. The
    /// caller bounds how many wait.
    pub fn visit(&self, look: impl FnOnce([BorrowedFd<'_>; 2]) + Send + 'static) {
        self.inbox.put(Command::Visit(Visit {
            live: self.live.clone(),
            look: Box::new(look),
        }));
    }
}

/// The next few of those that wait.
pub(crate) fn few(visits: &mut VecDeque<Visit>) -> Vec<Visit> {
    let count = visits.len().min(VISITS_MAX);
    visits.drain(..count).collect()
}
