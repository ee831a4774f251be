//! The ordered history of control's state, as its subscribers read it.
//!
//! Subscribers pull: each knows its own position and nothing is queued for it.
//! One that falls behind the ring gets a snapshot.

use std::collections::VecDeque;

use bytes::Bytes;
use culvert_net::crypto::{SigningKey, VerifyingKey};
use culvert_proto::id::Generation;
use culvert_proto::update::{Snapshot, Update};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::generated::StateMessage;
use crate::generated::state_message::Kind;
use crate::signed::{sign_snapshot, sign_update};

/// Updates kept for subscribers that come back.
pub const UPDATES_MAX: usize = 1024;
/// Bytes of updates kept for subscribers that come back.
pub const UPDATES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Control's present state and the updates that led to it.
pub struct Feed {
    key: SigningKey,
    history: Mutex<History>,
    tip: watch::Sender<u64>,
}

struct History {
    hub_id: String,
    generation: u64,
    snapshot: StateMessage,
    /// Ends with the update to `generation`, without gaps.
    updates: VecDeque<StateMessage>,
    bytes: usize,
}

/// An update that does not continue the history.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("update to generation {seen} does not follow generation {held}")]
pub struct FeedError {
    /// The update's generation.
    pub seen: u64,
    /// The present generation.
    pub held: u64,
}

/// How far a subscriber is; `None` before its first message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Position(pub(crate) Option<u64>);

impl Feed {
    /// A feed whose history starts at `snapshot`.
    #[must_use]
    pub fn new(key: SigningKey, snapshot: &Snapshot) -> Self {
        let generation = snapshot.generation.0;
        let history = History {
            hub_id: snapshot.hub_id.to_string(),
            generation,
            snapshot: snapshot_message(&key, snapshot),
            updates: VecDeque::new(),
            bytes: 0,
        };
        Self { key, history: Mutex::new(history), tip: watch::Sender::new(generation) }
    }

    /// Appends `update`; `snapshot` is the state once it is applied.
    ///
    /// # Errors
    /// When the update is not the next one, or the snapshot is not its result.
    pub fn publish(&self, update: &Update, snapshot: &Snapshot) -> Result<(), FeedError> {
        let seen = update.generation.0;
        let mut history = self.history.lock();
        let held = history.generation;
        if Some(seen) != held.checked_add(1) || snapshot.generation != update.generation {
            return Err(FeedError { seen, held });
        }
        history.snapshot = snapshot_message(&self.key, snapshot);
        history.generation = seen;
        let body = Bytes::from(update.encode());
        let message = StateMessage {
            kind: Kind::Update.into(),
            signature: Bytes::copy_from_slice(&sign_update(&self.key, &body)),
            snapshot_signature: history.snapshot.signature.clone(),
            body,
            ..bare(&self.key)
        };
        history.keep(message);
        drop(history);
        self.tip.send_replace(seen);
        Ok(())
    }

    /// The present generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(*self.tip.borrow())
    }

    /// The key that verifies what this feed sends.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        self.key.verifying_key()
    }

    pub(crate) fn tip(&self) -> watch::Receiver<u64> {
        self.tip.subscribe()
    }

    /// Where a subscriber stands that holds `generation` of `hub_id`.
    pub(crate) fn position(&self, hub_id: &str, generation: u64) -> Position {
        let history = self.history.lock();
        let known = generation > 0 && history.hub_id == hub_id && generation <= history.generation;
        if generation > history.generation && history.hub_id == hub_id {
            tracing::warn!(
                seen = generation,
                held = history.generation,
                "a data plane holds a newer generation than this store: was the store restored \
                 from a copy? the data plane keeps its state and refuses ours"
            );
        }
        Position(known.then_some(generation))
    }

    /// The message after `position`, which moves on; `None` when it is the newest.
    pub(crate) fn next(&self, position: &mut Position) -> Option<StateMessage> {
        let history = self.history.lock();
        let oldest = history.generation - history.updates.len() as u64;
        let message = match position.0 {
            Some(held) if held == history.generation => return None,
            Some(held) if held >= oldest && held < history.generation => {
                position.0 = Some(held + 1);
                let index = usize::try_from(held - oldest).unwrap_or(usize::MAX);
                history.updates.get(index)?.clone()
            }
            _ => {
                position.0 = Some(history.generation);
                history.snapshot.clone()
            }
        };
        Some(message)
    }

    /// A message that only says the link is alive.
    pub(crate) fn beat(&self) -> StateMessage {
        StateMessage { kind: Kind::Beat.into(), ..bare(&self.key) }
    }
}

impl History {
    fn keep(&mut self, message: StateMessage) {
        self.bytes += message.body.len();
        self.updates.push_back(message);
        while self.updates.len() > UPDATES_MAX || self.bytes > UPDATES_BYTES_MAX {
            let Some(oldest) = self.updates.pop_front() else { return };
            self.bytes -= oldest.body.len();
        }
    }
}

fn snapshot_message(key: &SigningKey, snapshot: &Snapshot) -> StateMessage {
    let body = Bytes::from(snapshot.encode());
    let signature = Bytes::copy_from_slice(&sign_snapshot(key, &body));
    StateMessage {
        kind: Kind::Snapshot.into(),
        snapshot_signature: signature.clone(),
        signature,
        body,
        ..bare(key)
    }
}

fn bare(key: &SigningKey) -> StateMessage {
    let public = key.verifying_key();
    StateMessage {
        key_id: Bytes::copy_from_slice(&public.id()),
        public_key: Bytes::copy_from_slice(&public.to_bytes()),
        ..StateMessage::default()
    }
}
