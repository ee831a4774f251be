//! Who waits at a relay, and who meets whom.
//!
//! Two sides meet when kind of proof and id are equal and roles differ, the oldest
//! first. A couple becomes a pair while more places are free than its sources have pairs
//! each: however many sources fill a relay, one that has few finds a place. Until then it waits,
//! and is passed by who has fewer. All operations cost the logarithm of what waits, those that
//! change how many pairs a source has that for each of its waiters.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

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
    /// Whom the pair counts for, bridge first.
    pub sources: [Source; 2],
}

/// What became of who came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered {
    /// Its number.
    pub id: WaiterId,
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

/// Everybody who waits. After a change, [`Waiting::next_pair`] has to be asked until there is none.
#[derive(Default)]
pub struct Waiting {
    limits: Limits,
    next: u64,
    pairs: usize,
    /// Pairs in which a source has a side, or both.
    pairs_of: BTreeMap<Source, usize>,
    waiters: BTreeMap<WaiterId, Waiter>,
    /// Alone, by role: one of the two sets of a place is empty.
    alone: BTreeMap<Place, [BTreeSet<WaiterId>; 2]>,
    /// Met, and waits for a place; by the order of meeting.
    couples: BTreeMap<u64, Couple>,
    /// The same by what their sources have: first comes who has least.
    next_up: BTreeSet<(usize, u64)>,
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

struct Couple {
    matched: Matched,
    /// Pairs of that source of the two which has more.
    has: usize,
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

    /// Of the sides that wait, those that have met and wait for a place.
    #[must_use]
    pub fn held_back(&self) -> usize {
        self.couples.len() * 2
    }

    /// Somebody of `source` comes to `place`, with its proof checked.
    ///
    /// # Errors
    /// When it cannot be joined at once and may not wait.
    pub fn enter(&mut self, source: Source, place: Place, role: Role) -> Result<Entered, Full> {
        let other = self.oldest_alone(place, role.other());
        let other = other.and_then(|other| self.waiters.get(&other));
        let joins_now = other.is_some_and(|other| self.has([source, other.source]) < self.free());
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
        Ok(Entered { id, displaced })
    }

    /// A waiter went away by itself, or was sent. Its partner may meet another by that.
    /// Nothing happens when it had been matched.
    pub fn leave(&mut self, id: WaiterId) -> bool {
        let Some(waiter) = self.waiters.get(&id).copied() else {
            return false;
        };
        self.remove(id);
        if let Some(order) = waiter.couple
            && let Some(couple) = self.couples.remove(&order)
        {
            self.next_up.remove(&(couple.has, order));
            self.alone_again(match waiter.role {
                Role::Bridge => couple.matched.broker,
                Role::Broker => couple.matched.bridge,
            });
        }
        true
    }

    /// A pair of these sources ended, or did not come to be.
    pub fn pair_ended(&mut self, sources: [Source; 2]) {
        self.pairs = self.pairs.saturating_sub(1);
        self.count(sources, |pairs| pairs.saturating_sub(1));
    }

    /// The next couple that may become a pair: of those whose sources have least, the one that
    /// met first.
    pub fn next_pair(&mut self) -> Option<Matched> {
        let (has, order) = self.next_up.first().copied()?;
        if has >= self.free() {
            return None;
        }
        self.next_up.remove(&(has, order));
        let matched = self.couples.remove(&order)?.matched;
        self.remove(matched.bridge);
        self.remove(matched.broker);
        self.pairs += 1;
        self.count(matched.sources, |pairs| pairs + 1);
        Some(matched)
    }

    fn free(&self) -> usize {
        self.limits.pairs_max.saturating_sub(self.pairs)
    }

    /// Pairs of that source of the two which has more.
    fn has(&self, sources: [Source; 2]) -> usize {
        let of = |source| self.pairs_of.get(source).copied().unwrap_or(0);
        sources.iter().map(of).max().unwrap_or(0)
    }

    /// Changes the pairs of two sources, and with them the order of the couples that wait.
    fn count(&mut self, [one, other]: [Source; 2], change: impl Fn(usize) -> usize) {
        let second = Some(other).filter(|it| *it != one);
        for source in [Some(one), second].into_iter().flatten() {
            let pairs = change(self.pairs_of.remove(&source).unwrap_or(0));
            if pairs > 0 {
                self.pairs_of.insert(source, pairs);
            }
            let own = self.by_source.get(&source).into_iter().flatten();
            let own = own.filter_map(|id| self.waiters.get(id)?.couple);
            for order in own.collect::<Vec<_>>() {
                self.rank(order);
            }
        }
    }

    /// Puts a couple where it belongs by what its sources have now.
    fn rank(&mut self, order: u64) {
        let Some(couple) = self.couples.get(&order) else {
            return;
        };
        let has = self.has(couple.matched.sources);
        if let Some(couple) = self.couples.get_mut(&order) {
            self.next_up.remove(&(couple.has, order));
            couple.has = has;
            self.next_up.insert((has, order));
        }
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
        let mut sides = [None; 2];
        for id in [one, other] {
            let Some(waiter) = self.waiters.get_mut(&id) else {
                return;
            };
            waiter.couple = Some(order);
            let waiter = *waiter;
            self.not_alone(id, &waiter);
            sides[index(waiter.role)] = Some((id, waiter.source));
        }
        let [Some(bridge), Some(broker)] = sides else {
            return;
        };
        let matched = Matched {
            bridge: bridge.0,
            broker: broker.0,
            sources: [bridge.1, broker.1],
        };
        self.couples.insert(order, Couple { matched, has: 0 });
        self.rank(order);
    }
}

fn index(role: Role) -> usize {
    match role {
        Role::Bridge => 0,
        Role::Broker => 1,
    }
}
