//! One accepted connection, from its accept to its close.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use culvert_engine::legs::{Connection, Leg, SAMPLE_INTERVAL};
use culvert_net::look::Looked;
use culvert_net::relay::End;
use culvert_observe::{ConnId, Leg as Tagged, Mark, Role, Tag, monotonic_ns};
use culvert_proto::close::CloseReason;
use parking_lot::Mutex;

use super::{Seen, Sight};

/// An accepted connection as it is counted and tagged. Whoever holds its socket
/// holds this, and drops it with it.
pub struct Watched {
    sight: Arc<Sight>,
    connection: Connection,
    seen: Seen,
    /// Its number as it was tagged last.
    conn: Option<ConnId>,
    /// The trace that looks at it.
    mark: Mark,
}

/// What a connection turned out to be.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Whose it is.
    pub seen: Seen,
    /// What it carries.
    pub leg: Leg,
    /// Its number, or that of the relay that it is a leg of.
    pub conn: Option<ConnId>,
}

impl Watched {
    /// It was just accepted; `leg` as far as its listener tells.
    pub fn accepted(sight: &Arc<Sight>, socket: &impl AsFd, leg: Leg) -> Self {
        if sight.looks_at_accept()
            && let Some(stat) = sight.observer.stat(socket.as_fd())
            && stat.t_est > 0
        {
            let waited_ns = monotonic_ns().saturating_sub(stat.t_est);
            sight
                .accept_queue
                .with_label_values(&[leg.as_str()])
                .observe(seconds(waited_ns));
        }
        Self::known(sight, leg)
    }

    /// It was accepted some time ago.
    pub fn known(sight: &Arc<Sight>, leg: Leg) -> Self {
        Self {
            connection: Connection::new(&sight.legs, leg),
            seen: sight.nobody(),
            sight: sight.clone(),
            conn: None,
            mark: Mark::default(),
        }
    }

    /// It turned out to be this: counted and tagged so from now on.
    pub fn becomes(&mut self, socket: BorrowedFd<'_>, identity: &Identity) {
        let Identity { seen, leg, conn } = identity;
        let conn = conn.or(self.conn).unwrap_or_else(|| self.sight.number());
        let is_same = self.conn == Some(conn) && self.seen == *seen && self.leg() == *leg;
        if is_same {
            return;
        }
        self.conn = Some(conn);
        self.seen = seen.clone();
        self.connection.becomes(&seen.named, *leg);
        self.mark = self.sight.observer.mark(seen.index);
        self.sight.observer.tag(socket, self.tag());
    }

    /// Its tag.
    pub(super) fn tag(&self) -> Tag {
        Tag {
            conn: self.conn.unwrap_or_else(|| self.sight.number()),
            cluster: self.seen.index,
            leg: tagged(self.leg()),
            role: match self.leg() {
                Leg::Data | Leg::Carrier => Role::Service,
                _ => Role::Client,
            },
            flags: 0,
        }
    }

    /// What it carries.
    pub fn leg(&self) -> Leg {
        self.connection.leg()
    }

    /// What is shared.
    pub(super) fn sight(&self) -> &Arc<Sight> {
        &self.sight
    }

    /// Reads what the kernel counted, if that was long ago, and follows a trace that began or
    /// ended since.
    pub fn sample_at_times(&mut self, socket: BorrowedFd<'_>) {
        self.connection.sample_at_times(socket);
        self.follow_trace(socket);
    }

    fn follow_trace(&mut self, socket: BorrowedFd<'_>) {
        let observer = &self.sight.observer;
        let mark = observer.mark(self.seen.index);
        if std::mem::replace(&mut self.mark, mark) != mark {
            observer.follow_trace(socket);
        }
    }

    /// Reads what the kernel counted.
    pub fn sample(&mut self, socket: BorrowedFd<'_>) {
        self.connection.sample(socket);
    }

    /// Why it will have ended.
    pub fn ends(&mut self, reason: CloseReason) {
        self.connection.ends(reason);
    }

    /// It is about to be closed.
    pub fn ended(&mut self, socket: BorrowedFd<'_>, reason: CloseReason) {
        self.connection.sample(socket);
        self.connection.ends(reason);
    }
}

/// A plain connection that is copied on this thread, and looked at as it goes.
pub struct Copied<E: End> {
    /// What is copied.
    pub io: Looked<E>,
    watched: Arc<Mutex<Watched>>,
}

impl<E: End> Copied<E> {
    /// `end`, which has a socket.
    pub fn new(end: E, watched: Watched) -> Self {
        let io = Looked::new(end, SAMPLE_INTERVAL);
        let watched = Arc::new(Mutex::new(watched));
        let eye = watched.clone();
        io.look().set(move |socket, is_due| {
            let mut watched = eye.lock();
            match is_due {
                true => watched.sample(socket),
                false => watched.follow_trace(socket),
            }
        });
        Self { io, watched }
    }

    /// Why it will have ended.
    pub fn ends(&self, reason: CloseReason) {
        self.watched.lock().ends(reason);
    }
}

/// As the kernel's records call it.
pub fn tagged(leg: Leg) -> Tagged {
    match leg {
        Leg::Client => Tagged::Client,
        Leg::Carrier => Tagged::Carrier,
        Leg::Data => Tagged::Data,
        Leg::Upstream => Tagged::Upstream,
        Leg::Pair => Tagged::Pair,
        Leg::Other => Tagged::Other,
    }
}

pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
