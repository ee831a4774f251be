//! Informational answers of the target: `100` lets the body go, the others go to the hub.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use culvert_net::interject::Interject;
use culvert_proto::close::CloseReason;
use culvert_proto::limits::INFORMATIONAL_MAX;
use http::{HeaderMap, StatusCode};
use tokio::sync::Notify;

use super::body::Gate;
use crate::serve::answer::Failure;
use crate::serve::head;

/// What the target says before its answer to one request.
pub struct Early {
    interject: Arc<Interject>,
    gate: Option<Arc<Gate>>,
    seen: AtomicU32,
    overrun: Notify,
}

impl Early {
    /// Nothing was said yet.
    #[must_use]
    pub fn new(interject: Arc<Interject>, gate: Option<Arc<Gate>>) -> Arc<Self> {
        Arc::new(Self {
            interject,
            // The hub hears our own 100 when the body goes.
            seen: AtomicU32::new(gate.is_some().into()),
            gate,
            overrun: Notify::new(),
        })
    }

    /// Takes one informational answer.
    pub fn hear(&self, status: StatusCode, headers: &HeaderMap) {
        let is_continue = status == StatusCode::CONTINUE;
        if is_continue && self.gate.as_ref().is_some_and(|gate| gate.open()) {
            return;
        }
        if self.seen.fetch_add(1, Ordering::Relaxed) >= INFORMATIONAL_MAX {
            self.overrun.notify_one();
        } else if !is_continue {
            self.interject
                .informational(&head::informational(status, headers));
        }
    }

    /// Resolves when there were too many.
    pub async fn overrun(&self) -> Failure {
        self.overrun.notified().await;
        Failure::new(
            CloseReason::UpstreamProtocol,
            format_args!("the target sent more than {INFORMATIONAL_MAX} informational answers"),
        )
    }
}
