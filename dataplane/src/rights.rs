//! What people have running, and what ends it before its time: signing out everywhere, a grant
//! that is over, a personal token that was taken.
//!
//! Admission asked the table once. A stream may outlive that answer by hours, so it is asked again
//! with every new table, and when something that it rests on ends by itself.

use std::collections::HashMap;
use std::sync::Arc;

use culvert_mux::StreamId;
use culvert_proto::close::CloseReason;
use culvert_proto::update::EVERY_SERVICE;
use parking_lot::Mutex;

use crate::ingress::{Person, Who};
use crate::plane::Plane;
use crate::sessions::Session;
use crate::table::{Cluster, Table};

/// What runs; each holds a stream of its session, which bounds how many there are.
#[derive(Default)]
pub struct Rights(Arc<Mutex<All>>);

#[derive(Default)]
struct All {
    next: u64,
    running: HashMap<u64, Right>,
}

/// What a person begins.
pub struct Begun {
    /// Where, as the table was when it was admitted.
    pub cluster: Arc<Cluster>,
    /// Who, and as whom.
    pub person: Arc<Person>,
    /// Whether it changes nothing.
    pub reads: bool,
    /// The agent that serves it.
    pub session: Arc<Session>,
    /// Over which stream.
    pub stream: StreamId,
}

struct Right {
    begun: Begun,
    /// When something it rests on ends by itself; it is judged anew then.
    until_unix_ms: u64,
}

/// One that runs; dropping it is its end.
pub struct Running {
    all: Arc<Mutex<All>>,
    id: u64,
}

impl Rights {
    /// `begun` runs from now on.
    ///
    /// # Errors
    /// Why it may not: the table changed since it was admitted.
    pub fn begin(&self, plane: &Plane, begun: Begun) -> Result<Running, CloseReason> {
        let mut all = self.0.lock();
        // Under the lock: a table that comes later finds it here.
        let table = plane.table.load();
        let known = table.get(begun.cluster.state.id.as_str());
        let is_unchanged = known.is_some_and(|known| Arc::ptr_eq(known, &begun.cluster));
        let until_unix_ms = match (is_unchanged, begun.ends_by_itself()) {
            // Nothing came between: admission has just asked.
            (true, false) => u64::MAX,
            (true, true) => 0,
            (false, _) => begun.standing(&table, crate::plane::unix_ms())?,
        };
        let id = all.next;
        all.next += 1;
        let right = Right {
            begun,
            until_unix_ms,
        };
        all.running.insert(id, right);
        drop(all);
        Ok(Running {
            all: self.0.clone(),
            id,
        })
    }

    /// Ends what `table` does not permit.
    pub fn end_unlawful(&self, table: &Table, now_unix_ms: u64) {
        self.judge(table, now_unix_ms, |_| true);
    }

    /// Ends what was permitted until now.
    pub fn end_expired(&self, table: &Table, now_unix_ms: u64) {
        self.judge(table, now_unix_ms, |right| {
            right.until_unix_ms <= now_unix_ms
        });
    }

    fn judge(&self, table: &Table, now_unix_ms: u64, is_due: impl Fn(&Right) -> bool) {
        let mut ended = 0;
        for right in self.0.lock().running.values_mut() {
            if !is_due(right) {
                continue;
            }
            match right.begun.standing(table, now_unix_ms) {
                Ok(until) => right.until_unix_ms = until,
                Err(reason) => {
                    let Begun {
                        person,
                        session,
                        stream,
                        ..
                    } = &right.begun;
                    tracing::debug!(%reason, subject = person.who.subject(), "a person's stream is ended");
                    session.carrier.cut(*stream, reason);
                    right.until_unix_ms = u64::MAX;
                    ended += 1;
                }
            }
        }
        if ended > 0 {
            tracing::info!(
                streams = ended,
                "streams of people who lost their right were ended"
            );
        }
    }
}

impl Begun {
    /// Whether a grant or token of this request may end without a new table.
    fn ends_by_itself(&self) -> bool {
        self.cluster.access.has_ends() || matches!(self.person.who, Who::Token { .. })
    }

    /// Until when it may go on as things stand.
    fn standing(&self, table: &Table, now_unix_ms: u64) -> Result<u64, CloseReason> {
        let person = &self.person;
        let cluster = table.get(self.cluster.state.id.as_str());
        let cluster = cluster.ok_or(CloseReason::Revoked)?;
        let mut until = u64::MAX;
        match &person.who {
            Who::Session(session) => {
                let people = table.people.as_ref();
                people
                    .filter(|people| people.allows(session))
                    .ok_or(CloseReason::SignedOut)?;
            }
            Who::Token { id, .. } => {
                let mut tokens = cluster.state.personal_tokens.iter();
                let token = tokens.find(|it| it.id == *id && it.reaches(EVERY_SERVICE));
                let token = token.ok_or(CloseReason::TokenRevoked)?;
                until = token.not_after_unix_ms.unwrap_or(until);
                if until <= now_unix_ms {
                    return Err(CloseReason::TokenExpired);
                }
            }
        }
        let policy = &cluster.access;
        let identity = policy.decide(person.who.as_asked(), now_unix_ms);
        let identity = identity.map_err(|_| CloseReason::GrantEnded)?;
        let is_covered = identity.covers(&person.identity);
        if !is_covered || policy.only_reads(&identity) && !self.reads {
            return Err(CloseReason::GrantEnded);
        }
        let end = policy.next_end(person.who.as_asked(), now_unix_ms);
        Ok(until.min(end.unwrap_or(u64::MAX)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.all.lock().running.remove(&self.id);
    }
}
