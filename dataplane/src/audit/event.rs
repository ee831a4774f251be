//! One audited request, from its attempt to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use culvert_audit::{Ended, EventId, Outcome, Record, Verb};
use culvert_proto::close::{CloseReason, Side};

use super::Shared;
use crate::plane::unix_ms;

/// Bytes of the bodies of an audited request.
#[derive(Debug, Default)]
pub struct Counts {
    /// Towards the service.
    pub to_service: AtomicU64,
    /// Towards the client.
    pub to_client: AtomicU64,
}

/// An event whose attempt is recorded. Dropping it records its end, however that
/// comes about.
pub struct Event {
    shared: Arc<Shared>,
    id: EventId,
    verb: Verb,
    began: Instant,
    counts: Arc<Counts>,
    status: u16,
    reason: Option<CloseReason>,
    is_told: bool,
}

impl Event {
    pub(super) fn new(shared: Arc<Shared>, id: EventId, verb: Verb) -> Self {
        Self {
            shared,
            id,
            verb,
            began: Instant::now(),
            counts: Arc::default(),
            status: 0,
            reason: None,
            is_told: false,
        }
    }

    /// Nothing was recorded: nothing is to be ended.
    pub(super) fn forget(mut self) -> Option<Self> {
        self.is_told = true;
        None
    }

    /// Where bytes are counted.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// The status that goes to the client.
    pub fn answered(&mut self, status: u16) {
        self.status = status;
    }

    /// Why it ends; the first word counts.
    pub fn ends(&mut self, reason: CloseReason) {
        self.reason.get_or_insert(reason);
    }

    /// What it opened is open: its result is known, its end is not.
    pub fn opened(&mut self) {
        if self.verb != Verb::ExecOpen {
            return;
        }
        self.tell(Outcome::Success, CloseReason::Finished, true);
        self.verb = Verb::ExecClose;
    }

    fn tell(&self, outcome: Outcome, reason: CloseReason, stays_open: bool) {
        let ended = Ended {
            id: self.id,
            time_unix_ms: unix_ms(),
            verb: self.verb,
            outcome,
            status: self.status,
            reason: reason.as_str().to_owned(),
            to_service: self.counts.to_service.load(Ordering::Relaxed),
            to_client: self.counts.to_client.load(Ordering::Relaxed),
            duration_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            stays_open,
        };
        // There is a spool, since the attempt is in it.
        let _ = self.shared.push(&Record::Ended(ended), None);
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        let reason = self.reason.unwrap_or(CloseReason::ClientReset);
        self.tell(outcome(self.status, reason), reason, false);
    }
}

/// What became of a request that was answered so (0 = not at all) and ended so.
fn outcome(status: u16, reason: CloseReason) -> Outcome {
    let refused = |status: u16| matches!(status, 401 | 403);
    let was_granted = (100..400).contains(&status);
    if refused(status) || !was_granted && reason.http_status().is_some_and(refused) {
        return Outcome::Denied;
    }
    // Once the target said yes it is done, whether or not the client hears the rest.
    let is_whole = reason.is_clean() || reason.side() == Side::Client;
    match status {
        100..400 if is_whole => Outcome::Success,
        _ => Outcome::Failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_and_the_end_decide_the_outcome() {
        use CloseReason::{
            AgentAbsent, CarrierLost, ClientReset, Finished, SignedOut, TargetNotAllowed,
            UpstreamReset,
        };
        for (status, reason, wanted) in [
            (200, Finished, Outcome::Success),
            (304, Finished, Outcome::Success),
            (200, ClientReset, Outcome::Success),
            (101, Finished, Outcome::Success),
            (401, Finished, Outcome::Denied),
            (403, Finished, Outcome::Denied),
            (403, TargetNotAllowed, Outcome::Denied),
            (401, SignedOut, Outcome::Denied),
            (0, SignedOut, Outcome::Denied),
            (101, SignedOut, Outcome::Success),
            (404, Finished, Outcome::Failure),
            (500, Finished, Outcome::Failure),
            (503, AgentAbsent, Outcome::Failure),
            (200, UpstreamReset, Outcome::Failure),
            (200, CarrierLost, Outcome::Failure),
            (0, ClientReset, Outcome::Failure),
        ] {
            assert_eq!(outcome(status, reason), wanted, "{status} {reason}");
        }
    }
}
