//! The sessions of one cluster.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::{Policy, Presence, Refused, Standing};
use crate::id::{Epoch, SessionKey};
use crate::limits::{HOLD_DOWN_MS, SESSIONS_PER_CLUSTER_MAX, SWAP_WINDOW_MS, SWAPS_MAX};

#[derive(Debug)]
pub(super) struct Cluster<H> {
    sessions: Vec<Session<H>>,
    floor: Epoch,
    /// Times of the last swaps, oldest first; at most [`SWAPS_MAX`].
    swaps: VecDeque<u64>,
    hold_until_ms: Option<u64>,
    /// Where the next tie starts, so that equal loads take turns.
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Session<H> {
    key: SessionKey,
    floor: Epoch,
    standing: Standing,
    handle: H,
}

/// What attaching would do.
pub(super) struct Effect {
    pub(super) evicts: usize,
    pub(super) swaps: bool,
}

/// A swap that is held down.
pub(super) struct Held {
    pub(super) remaining_ms: u64,
    pub(super) entered: bool,
}

impl<H> Default for Cluster<H> {
    fn default() -> Self {
        Cluster {
            sessions: Vec::new(),
            floor: Epoch(0),
            swaps: VecDeque::new(),
            hold_until_ms: None,
            turn: AtomicUsize::new(0),
        }
    }
}

impl<H> Session<H> {
    /// Whether this session goes when `new` attaches under `policy`.
    fn gives_way(&self, new: &SessionKey, policy: Policy) -> bool {
        policy == Policy::Replace || self.key.instance == new.instance
    }

    /// Whether `new` certainly comes from the same process.
    fn is_same_agent(&self, new: &SessionKey) -> bool {
        !new.instance.is_none() && self.key.instance == new.instance
    }
}

impl<H> Cluster<H> {
    pub(super) fn judge(
        &self,
        new: &SessionKey,
        policy: Policy,
        floor: Epoch,
    ) -> Result<Effect, Refused> {
        if floor < self.floor {
            return Err(Refused::Revoked);
        }
        let contested =
            |old: &Session<H>| old.standing == Standing::Serving && !old.is_same_agent(new);
        if policy == Policy::Refuse && self.sessions.iter().any(contested) {
            return Err(Refused::Duplicate);
        }
        let mut effect = Effect {
            evicts: 0,
            swaps: false,
        };
        for old in self
            .sessions
            .iter()
            .filter(|old| old.gives_way(new, policy))
        {
            if old.key.epoch >= new.epoch {
                return Err(Refused::Stale);
            }
            effect.evicts += 1;
            effect.swaps |= contested(old);
        }
        if self.sessions.len() - effect.evicts >= SESSIONS_PER_CLUSTER_MAX {
            return Err(Refused::Full);
        }
        Ok(effect)
    }

    /// Whether one more swap is within the rate; entering hold-down happens here.
    pub(super) fn may_swap(&mut self, now_ms: u64) -> Result<(), Held> {
        if let Some(until) = self.hold_until_ms {
            if now_ms < until {
                return Err(Held {
                    remaining_ms: until - now_ms,
                    entered: false,
                });
            }
            self.hold_until_ms = None;
        }
        self.swaps
            .retain(|at| now_ms.saturating_sub(*at) < SWAP_WINDOW_MS);
        if self.swaps.len() < SWAPS_MAX {
            return Ok(());
        }
        self.swaps.clear();
        self.hold_until_ms = Some(now_ms.saturating_add(HOLD_DOWN_MS));
        Err(Held {
            remaining_ms: HOLD_DOWN_MS,
            entered: true,
        })
    }

    pub(super) fn note_swap(&mut self, now_ms: u64) {
        self.swaps.push_back(now_ms);
    }

    pub(super) fn replace(
        &mut self,
        key: SessionKey,
        policy: Policy,
        floor: Epoch,
        handle: H,
    ) -> Vec<(SessionKey, H)> {
        let evicted = self.extract(|session| session.gives_way(&key, policy));
        self.sessions.push(Session {
            key,
            floor,
            standing: Standing::Serving,
            handle,
        });
        evicted
    }

    pub(super) fn take(&mut self, key: &SessionKey) -> Option<H> {
        let place = self
            .sessions
            .iter()
            .position(|session| session.key == *key)?;
        Some(self.sessions.swap_remove(place).handle)
    }

    pub(super) fn pick(&self, load: impl Fn(&H) -> u64) -> Option<&H> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.least(Standing::Serving, turn, &load)
            .or_else(|| self.least(Standing::Leaving, turn, &load))
    }

    fn least(&self, standing: Standing, turn: usize, load: &impl Fn(&H) -> u64) -> Option<&H> {
        let start = turn % self.sessions.len().max(1);
        let (before, after) = self.sessions.split_at(start);
        let fitting = after
            .iter()
            .chain(before)
            .filter(|session| session.standing == standing);
        fitting
            .min_by_key(|session| load(&session.handle))
            .map(|session| &session.handle)
    }

    pub(super) fn revoke(&mut self, floor: Epoch) -> Vec<(SessionKey, H)> {
        self.floor = self.floor.max(floor);
        let floor = self.floor;
        self.extract(|session| session.floor < floor)
    }

    pub(super) fn into_sessions(self) -> Vec<(SessionKey, H)> {
        self.sessions
            .into_iter()
            .map(|session| (session.key, session.handle))
            .collect()
    }

    pub(super) fn set_standing(&mut self, key: &SessionKey, standing: Standing) -> bool {
        let found = self.sessions.iter_mut().find(|session| session.key == *key);
        found.map(|session| session.standing = standing).is_some()
    }

    pub(super) fn leave_all(&mut self) {
        for session in &mut self.sessions {
            if session.standing == Standing::Serving {
                session.standing = Standing::Leaving;
            }
        }
    }

    pub(super) fn get(&self, key: &SessionKey) -> Option<&H> {
        self.sessions
            .iter()
            .find(|session| session.key == *key)
            .map(|session| &session.handle)
    }

    pub(super) fn presence(&self) -> Presence {
        let count = |standing| {
            self.sessions
                .iter()
                .filter(|s| s.standing == standing)
                .count()
        };
        match (count(Standing::Serving), self.sessions.is_empty()) {
            (_, true) => Presence::Absent,
            (0, false) => Presence::Draining,
            (serving, false) => Presence::Serving(serving),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&SessionKey, Standing, &H)> {
        self.sessions
            .iter()
            .map(|session| (&session.key, session.standing, &session.handle))
    }

    fn extract(&mut self, goes: impl Fn(&Session<H>) -> bool) -> Vec<(SessionKey, H)> {
        let gone = self.sessions.extract_if(.., |session| goes(session));
        gone.map(|session| (session.key, session.handle)).collect()
    }
}
