//! Who waits at a relay, and who meets whom.
//!
//! Two sides meet when kind of proof and id are equal and roles differ, the oldest
//! first. A couple that finds the pairs at their limit waits for a place, in
//! the order of meeting. All operations cost the logarithm of what waits.

use alloc::collections::{BTreeMap, BTreeSet};

use super::{PAIRS_DEFAULT, SOURCE_WAITERS_DEFAULT, Source, WAITERS_DEFAULT};
use crate::pair::{ProofKind, RendezvousId, Role};

/// One side that waits; a younger one has a higher number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(u64);

/// Where two sides meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Orders open joins first: never matched with the others.
    kind: u8,
    id: RendezvousId,
}

/// How many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sides that wait.
    pub waiters_max: usize,
    /// Of one source.
    pub source_waiters_max: usize,
    /// Pairs.
    pub pairs_max: usize,
}

/// Two sides that are joined now. The pair holds a place until
/// [`Waiting::pair_ended`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matched {
    /// Has the target.
    pub bridge: WaiterId,
    /// Has the listener.
    pub broker: WaiterId,
}

/// What became of who came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered {
    /// Its number.
    pub id: WaiterId,
    /// It is joined at once, and waits no more.
    pub matched: Option<Matched>,
    /// Made room, and has to be sent away.
    pub displaced: Option<WaiterId>,
}

/// There is no room to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// For this source.
    #[error("{0} connections of this source wait already")]
    Source(usize),
    /// For anybody who has no better right than who is here.
    #[error("{0} connections wait already")]
    All(usize),
}

/// Everybody who waits.
#[derive(Default)]
pub struct Waiting {
    limits: Limits,
    next: u64,
    pairs: usize,
    waiters: BTreeMap<WaiterId, Waiter>,
    /// Alone, by role: one of the two sets of a place is empty.
    alone: BTreeMap<Place, [BTreeSet<WaiterId>; 2]>,
    /// Met, and waits for the end of a pair; by the order of meeting.
    couples: BTreeMap<u64, Matched>,
    by_source: BTreeMap<Source, BTreeSet<WaiterId>>,
    /// Sources by how many of theirs wait.
    by_count: BTreeSet<(usize, Source)>,
    open: BTreeSet<WaiterId>,
}

#[derive(Clone, Copy)]
struct Waiter {
    source: Source,
    place: Place,
    role: Role,
    couple: Option<u64>,
}

impl Place {
    /// Of a preface.
    #[must_use]
    pub fn new(kind: ProofKind, id: RendezvousId) -> Self {
        let kind = kind as u8;
        Place { kind, id }
    }

    fn is_open(self) -> bool {
        self.kind == ProofKind::Open as u8
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            waiters_max: WAITERS_DEFAULT as usize,
            source_waiters_max: SOURCE_WAITERS_DEFAULT as usize,
            pairs_max: PAIRS_DEFAULT as usize,
        }
    }
}

impl Waiting {
    /// Nobody yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Waiting {
            limits,
            ..Waiting::default()
        }
    }

    /// Sides that wait now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Pairs that have a place now.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Somebody of `source` comes to `place`, with its proof checked.
    ///
    /// # Errors
    /// When it cannot be joined at once and may not wait.
    pub fn enter(&mut self, source: Source, place: Place, role: Role) -> Result<Entered, Full> {
        let other = self.oldest_alone(place, role.other());
        let joins_now = other.is_some() && self.pairs < self.limits.pairs_max;
        let displaced = match joins_now {
            true => None,
            false => self.make_room(source, place)?,
        };
        // Whoever made room may have been the one to meet.
        let other = self.oldest_alone(place, role.other());
        let id = WaiterId(self.next);
        self.next += 1;
        self.insert(id, source, place, role);
        if let Some(other) = other {
            self.couple(id, other);
        }
        let matched = self.next_pair();
        Ok(Entered {
            id,
            matched,
            displaced,
        })
    }

    /// A waiter went away by itself, or was sent. Another pair may meet by that.
    /// Nothing happens when it had been matched.
    pub fn leave(&mut self, id: WaiterId) -> bool {
        let Some(waiter) = self.waiters.get(&id).copied() else {
            return false;
        };
        self.remove(id);
        if let Some(order) = waiter.couple
            && let Some(couple) = self.couples.remove(&order)
        {
            self.alone_again(match waiter.role {
                Role::Bridge => couple.broker,
                Role::Broker => couple.bridge,
            });
        }
        true
    }

    /// A pair ended, or did not come to be. The couple that has waited longest
    /// takes its place.
    pub fn pair_ended(&mut self) -> Option<Matched> {
        self.pairs = self.pairs.saturating_sub(1);
        self.next_pair()
    }

    fn oldest_alone(&self, place: Place, role: Role) -> Option<WaiterId> {
        let [bridges, brokers] = self.alone.get(&place)?;
        let alone = match role {
            Role::Bridge => bridges,
            Role::Broker => brokers,
        };
        alone.first().copied()
    }

    /// Sends away the youngest of an open join for a proven one, else the youngest of
    /// the source that has most, if that is fair: so nobody's many keep out
    /// another's few.
    fn make_room(&mut self, source: Source, place: Place) -> Result<Option<WaiterId>, Full> {
        let own = self.by_source.get(&source).map_or(0, BTreeSet::len);
        if own >= self.limits.source_waiters_max {
            return Err(Full::Source(own));
        }
        if self.waiters.len() < self.limits.waiters_max {
            return Ok(None);
        }
        let open = self.open.last().copied().filter(|_| !place.is_open());
        let greediest = || {
            let (count, greedy) = self.by_count.last()?;
            let fair = *count > own + 1;
            let youngest = self.by_source.get(greedy)?.last().copied();
            youngest.filter(|_| fair)
        };
        match open.or_else(greediest) {
            Some(out) => {
                self.leave(out);
                Ok(Some(out))
            }
            None => Err(Full::All(self.waiters.len())),
        }
    }

    fn insert(&mut self, id: WaiterId, source: Source, place: Place, role: Role) {
        let waiter = Waiter {
            source,
            place,
            role,
            couple: None,
        };
        self.waiters.insert(id, waiter);
        let own = self.by_source.entry(source).or_default();
        self.by_count.remove(&(own.len(), source));
        own.insert(id);
        self.by_count.insert((own.len(), source));
        if place.is_open() {
            self.open.insert(id);
        }
        let alone = self.alone.entry(place).or_default();
        alone[index(role)].insert(id);
    }

    fn remove(&mut self, id: WaiterId) {
        let Some(waiter) = self.waiters.remove(&id) else {
            return;
        };
        self.not_alone(id, &waiter);
        self.open.remove(&id);
        let source = waiter.source;
        if let Some(own) = self.by_source.get_mut(&source) {
            self.by_count.remove(&(own.len(), source));
            own.remove(&id);
            match own.len() {
                0 => drop(self.by_source.remove(&source)),
                rest => drop(self.by_count.insert((rest, source))),
            }
        }
    }

    fn not_alone(&mut self, id: WaiterId, waiter: &Waiter) {
        if let Some(alone) = self.alone.get_mut(&waiter.place) {
            alone[index(waiter.role)].remove(&id);
            if alone.iter().all(BTreeSet::is_empty) {
                self.alone.remove(&waiter.place);
            }
        }
    }

    /// Its partner went: it meets the next, or waits on with its age.
    fn alone_again(&mut self, id: WaiterId) {
        let Some(waiter) = self.waiters.get_mut(&id) else {
            return;
        };
        waiter.couple = None;
        let (place, role) = (waiter.place, waiter.role);
        self.alone.entry(place).or_default()[index(role)].insert(id);
        if let Some(other) = self.oldest_alone(place, role.other()) {
            self.couple(id, other);
        }
    }

    fn couple(&mut self, one: WaiterId, other: WaiterId) {
        let order = self.next;
        self.next += 1;
        let mut couple = Matched {
            bridge: one,
            broker: other,
        };
        for id in [one, other] {
            let Some(waiter) = self.waiters.get_mut(&id) else {
                return;
            };
            waiter.couple = Some(order);
            let waiter = *waiter;
            self.not_alone(id, &waiter);
            match waiter.role {
                Role::Bridge => couple.bridge = id,
                Role::Broker => couple.broker = id,
            }
        }
        self.couples.insert(order, couple);
    }

    fn next_pair(&mut self) -> Option<Matched> {
        if self.pairs >= self.limits.pairs_max {
            return None;
        }
        let (_, couple) = self.couples.pop_first()?;
        self.remove(couple.bridge);
        self.remove(couple.broker);
        self.pairs += 1;
        Some(couple)
    }
}

fn index(role: Role) -> usize {
    match role {
        Role::Bridge => 0,
        Role::Broker => 1,
    }
}
