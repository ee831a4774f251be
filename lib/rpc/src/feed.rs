//! The ordered history of control's state, as its subscribers read it.
//!
//! Subscribers pull: each knows its own position and nothing is queued for it.
//! One that falls behind the ring gets a snapshot.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use culvert_net::crypto::{SigningKey, VerifyingKey};
use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::update::{ApplyError, Rotation, State, Update};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::generated::StateMessage;
use crate::generated::state_message::Kind;

/// Updates kept for subscribers that come back.
pub const UPDATES_MAX: usize = 1024;
/// Bytes of updates kept for subscribers that come back.
pub const UPDATES_BYTES_MAX: usize = 8 << 20;
/// Tokens that wait for delivery at once, one for each cluster.
pub const ROTATIONS_MAX: usize = 1024;

/// Control's present state, the updates that led to it, and the tokens that
/// wait for delivery.
pub struct Feed {
    key: SigningKey,
    history: Mutex<History>,
    /// Rises with everything that subscribers should look at.
    news: watch::Sender<u64>,
}

struct History {
    state: State,
    /// Made for the first subscriber that needs it.
    snapshot: Option<StateMessage>,
    /// Ends with the update to the present generation, without gaps.
    updates: VecDeque<StateMessage>,
    bytes: usize,
    rotations: BTreeMap<u64, (ClusterId, StateMessage)>,
    last_rotation: u64,
}

/// As many tokens wait for delivery as are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ROTATIONS_MAX} tokens wait for delivery already")]
pub struct TooManyRotations;

/// How far a subscriber is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Position {
    /// `None` when only a snapshot helps.
    generation: Option<Generation>,
    rotation: u64,
}

impl Feed {
    /// A feed whose history starts at `state`.
    #[must_use]
    pub fn new(key: SigningKey, state: State) -> Self {
        let history = History {
            snapshot: None,
            state,
            updates: VecDeque::new(),
            bytes: 0,
            rotations: BTreeMap::new(),
            last_rotation: 0,
        };
        Self {
            key,
            history: Mutex::new(history),
            news: watch::Sender::new(0),
        }
    }

    /// Appends `update` and shows it to every subscriber.
    ///
    /// # Errors
    /// When it does not follow the present generation; then nothing changed.
    pub fn publish(&self, update: &Update) -> Result<(), ApplyError> {
        let mut history = self.history.lock();
        history.state.apply(update)?;
        history.snapshot = None;
        history.keep(self.signed(Kind::Update, update.encode()));
        drop(history);
        self.announce();
        Ok(())
    }

    /// As [`Feed::publish`], from however far behind: for a state that other processes
    /// recorded. Subscribers get a snapshot.
    ///
    /// # Errors
    /// When it is not ahead of the present generation; then nothing changed.
    pub fn leap(&self, update: &Update) -> Result<(), ApplyError> {
        let mut history = self.history.lock();
        let held = history.state.generation;
        if update.generation > held {
            history.state.generation = Generation(update.generation.0 - 1);
        }
        if let Err(why) = history.state.apply(update) {
            history.state.generation = held;
            return Err(why);
        }
        history.snapshot = None;
        history.updates.clear();
        history.bytes = 0;
        drop(history);
        self.announce();
        Ok(())
    }

    /// Offers a token to the agents of its cluster, in place of an earlier one.
    /// Subscribers that come later get it too, until it is withdrawn.
    ///
    /// # Errors
    /// [`TooManyRotations`].
    pub fn offer(&self, rotation: &Rotation) -> Result<(), TooManyRotations> {
        let message = self.signed(Kind::Rotation, Bytes::copy_from_slice(&rotation.encode()));
        let mut history = self.history.lock();
        history.withdraw(&rotation.cluster);
        if history.rotations.len() >= ROTATIONS_MAX {
            return Err(TooManyRotations);
        }
        history.last_rotation += 1;
        let sequence = history.last_rotation;
        history
            .rotations
            .insert(sequence, (rotation.cluster.clone(), message));
        drop(history);
        self.announce();
        Ok(())
    }

    /// Stops to offer the cluster's token.
    pub fn withdraw(&self, cluster: &ClusterId) {
        self.history.lock().withdraw(cluster);
    }

    /// The present generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.history.lock().state.generation
    }

    /// The key that verifies what this feed sends.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        self.key.verifying_key()
    }

    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Where a subscriber stands that holds `generation` of `hub_id`.
    pub(crate) fn position(&self, hub_id: &str, generation: Generation) -> Position {
        let history = self.history.lock();
        let held = history.state.generation;
        let is_ours = *history.state.hub_id == *hub_id && generation.0 > 0;
        if is_ours && generation > held {
            tracing::warn!(
                seen = generation.0,
                held = held.0,
                "a data plane holds a newer generation than this store: was the store restored \
                 from a copy? the data plane keeps its state and refuses ours"
            );
        }
        let known = is_ours && generation <= held;
        Position {
            generation: known.then_some(generation),
            rotation: 0,
        }
    }

    /// The message after `position`, which moves on; `None` when there is no news.
    pub(crate) fn next(&self, position: &mut Position) -> Option<StateMessage> {
        let mut history = self.history.lock();
        let newest = history.state.generation;
        if position.generation != Some(newest) {
            let update = position.generation.and_then(|held| history.after(held));
            let next = match (&update, position.generation) {
                (Some(_), Some(held)) => Generation(held.0 + 1),
                _ => newest,
            };
            position.generation = Some(next);
            return Some(update.unwrap_or_else(|| history.snapshot(&self.key)));
        }
        let unseen = position.rotation + 1;
        let (sequence, (_, message)) = history.rotations.range(unseen..).next()?;
        position.rotation = *sequence;
        Some(message.clone())
    }

    /// A message that only says the link is alive.
    pub(crate) fn beat(&self) -> StateMessage {
        StateMessage {
            kind: Kind::Beat.into(),
            ..StateMessage::default()
        }
    }

    fn signed(&self, kind: Kind, body: Bytes) -> StateMessage {
        signed(&self.key, kind, body)
    }

    fn announce(&self) {
        self.news.send_modify(|news| *news = news.wrapping_add(1));
    }
}

impl Position {
    /// Forgets what the subscriber holds of the state.
    pub(crate) fn start_over(&mut self) {
        self.generation = None;
    }
}

impl History {
    fn snapshot(&mut self, key: &SigningKey) -> StateMessage {
        let body = || self.state.to_snapshot().encode();
        self.snapshot
            .get_or_insert_with(|| signed(key, Kind::Snapshot, body()))
            .clone()
    }

    fn after(&self, held: Generation) -> Option<StateMessage> {
        let behind = self.state.generation.0.checked_sub(held.0)?;
        let index = self
            .updates
            .len()
            .checked_sub(usize::try_from(behind).ok()?)?;
        self.updates.get(index).cloned()
    }

    fn keep(&mut self, message: StateMessage) {
        self.bytes += message.body.len();
        self.updates.push_back(message);
        while self.updates.len() > UPDATES_MAX || self.bytes > UPDATES_BYTES_MAX {
            let Some(oldest) = self.updates.pop_front() else {
                return;
            };
            self.bytes -= oldest.body.len();
        }
    }

    fn withdraw(&mut self, cluster: &ClusterId) {
        self.rotations.retain(|_, (other, _)| other != cluster);
    }
}

fn signed(key: &SigningKey, kind: Kind, body: Bytes) -> StateMessage {
    let public = key.verifying_key();
    StateMessage {
        kind: kind.into(),
        signature: Bytes::copy_from_slice(&key.sign(&body)),
        body,
        key_id: Bytes::copy_from_slice(&public.id()),
        public_key: Bytes::copy_from_slice(&public.to_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_proto::token::TokenText;
    use culvert_proto::update::{Change, ClusterState, Snapshot};
    use proptest::prelude::*;
    use std::sync::Arc;

    fn feed() -> Feed {
        let state = State {
            generation: Generation(1),
            hub_id: "hub".into(),
            ..State::default()
        };
        Feed::new(SigningKey::generate().unwrap(), state)
    }

    fn update(generation: u64) -> Update {
        let id = format!("c{}", generation % 5).parse().unwrap();
        let mut cluster = ClusterState::new(id);
        cluster.rate_per_second = u32::try_from(generation).unwrap();
        let changes = match generation % 7 {
            0 => vec![Change::Remove(cluster.id)],
            _ => vec![Change::Upsert(Arc::new(cluster))],
        };
        Update {
            generation: Generation(generation),
            issued_unix_ms: generation,
            changes,
        }
    }

    fn rotation(cluster: &str) -> Rotation {
        Rotation {
            cluster: cluster.parse().unwrap(),
            token_id: "t".into(),
            not_before_unix_s: 0,
            token: TokenText::new("rhc_0123456789abcdef").unwrap(),
        }
    }

    #[test]
    fn only_the_next_generation_is_taken() {
        let feed = feed();
        assert!(feed.publish(&update(3)).is_err());
        assert!(feed.publish(&update(1)).is_err());
        feed.publish(&update(2)).unwrap();
        assert_eq!(feed.generation(), Generation(2));
    }

    #[test]
    fn a_subscriber_behind_the_ring_gets_a_snapshot() {
        let feed = feed();
        let mut here = feed.position("hub", Generation(1));
        let mut elsewhere = feed.position("other hub", Generation(1));
        let newest = UPDATES_MAX as u64 + 2;
        (2..=newest).for_each(|n| feed.publish(&update(n)).unwrap());
        for position in [&mut here, &mut elsewhere] {
            assert_eq!(feed.next(position).unwrap().kind(), Kind::Snapshot);
            assert!(feed.next(position).is_none());
        }
        let mut close = feed.position("hub", Generation(2));
        assert_eq!(feed.next(&mut close).unwrap().kind(), Kind::Update);
    }

    #[test]
    fn a_token_is_offered_once_to_each_until_it_is_withdrawn() {
        let feed = feed();
        let mut first = feed.position("hub", Generation(1));
        feed.offer(&rotation("a")).unwrap();
        feed.offer(&rotation("a")).unwrap();
        assert_eq!(feed.next(&mut first).unwrap().kind(), Kind::Rotation);
        assert!(feed.next(&mut first).is_none());
        let mut second = feed.position("hub", Generation(1));
        assert_eq!(feed.next(&mut second).unwrap().kind(), Kind::Rotation);
        feed.withdraw(&"a".parse().unwrap());
        assert!(
            feed.next(&mut feed.position("hub", Generation(1)))
                .is_none()
        );
    }

    proptest! {
        /// Whatever a subscriber holds and whenever it reads: what it gets leads
        /// it to exactly the newest state, and every signature holds.
        #[test]
        fn every_subscriber_ends_at_the_newest_state(
            published in 1u64..40, start in 0u64..45, reads in proptest::collection::vec(0u8..4, 40)
        ) {
            let feed = feed();
            let mut mirror = State { generation: Generation(1), hub_id: "hub".into(), ..State::default() };
            let mut position = feed.position("hub", Generation(start));
            let mut held = (start == 1).then(|| mirror.clone());
            let mut read = |held: &mut Option<State>| {
                let Some(message) = feed.next(&mut position) else { return false };
                assert!(feed.verifying_key().verify(&message.body, &message.signature));
                match message.kind() {
                    Kind::Snapshot => {
                        let snapshot = Snapshot::decode(&message.body).unwrap();
                        *held = Some(State::from_snapshot(snapshot));
                    }
                    _ => {
                        let state = held.as_mut().unwrap();
                        state.apply(&Update::decode(&message.body).unwrap()).unwrap();
                    }
                }
                true
            };
            for n in 2..2 + published {
                feed.publish(&update(n)).unwrap();
                mirror.apply(&update(n)).unwrap();
                for _ in 0..reads[usize::try_from(n % 40).unwrap()] {
                    read(&mut held);
                }
            }
            while read(&mut held) {}
            prop_assert_eq!(held, Some(mirror));
        }
    }
}
