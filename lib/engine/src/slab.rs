//! The pairs of one thread, by slot and generation, and the times at which one
//! of them wants to be looked at.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::pair::Side;

/// Slots of one thread.
pub const SLOTS_MAX: usize = 1 << 30;

/// A place in the slab that is never mistaken for a later one in the same slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    slot: u32,
    generation: u32,
}

impl Id {
    /// What a poll tells with: generation, slot and side.
    pub fn token(self, side: Side) -> u64 {
        u64::from(self.generation) << 33 | u64::from(self.slot) << 1 | side as u64
    }

    /// Whose token it is.
    pub fn of(token: u64) -> (Self, Side) {
        let side = match token & 1 {
            0 => Side::Client,
            _ => Side::Service,
        };
        let slot = u32::try_from(token >> 1 & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let generation = u32::try_from(token >> 33).unwrap_or(u32::MAX);
        (Self { slot, generation }, side)
    }
}

/// Values by [`Id`].
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

/// The last generation marks doors, the bell and completions for nobody.
const GENERATION_MAX: u32 = (1 << 31) - 2;
/// No token of a pair is greater.
pub const TOKEN_MAX: u64 = ((GENERATION_MAX as u64) << 33) | ((1 << 33) - 1);

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    /// Keeps a value; gives it back when there are [`SLOTS_MAX`].
    pub fn insert(&mut self, value: T) -> Result<Id, T> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => match u32::try_from(self.slots.len()) {
                Ok(slot) if self.slots.len() < SLOTS_MAX => {
                    self.slots.push((0, None));
                    slot
                }
                _ => return Err(value),
            },
        };
        let place = &mut self.slots[slot as usize];
        place.1 = Some(value);
        Ok(Id {
            slot,
            generation: place.0,
        })
    }

    /// The value of `id`, if it is still there.
    pub fn get(&mut self, id: Id) -> Option<&mut T> {
        let place = self.slots.get_mut(id.slot as usize)?;
        (place.0 == id.generation).then_some(place.1.as_mut())?
    }

    /// Takes the value of `id` out.
    pub fn remove(&mut self, id: Id) -> Option<T> {
        self.get(id)?;
        let place = &mut self.slots[id.slot as usize];
        place.0 = if place.0 >= GENERATION_MAX {
            0
        } else {
            place.0 + 1
        };
        self.free.push(id.slot);
        place.1.take()
    }

    /// Every id in use.
    pub fn ids(&self) -> Vec<Id> {
        let used = self
            .slots
            .iter()
            .zip(0..)
            .filter(|((_, value), _)| value.is_some());
        used.map(|((generation, _), slot)| Id {
            slot,
            generation: *generation,
        })
        .collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// When to look at whom; a few entries for each pair at most, which stay until
/// they are due.
#[derive(Debug, Default)]
pub struct Times {
    /// Those that were set in order, as a constant delay has it: a short pair
    /// leaves one behind, and sorting it would cost more than the pair's bytes.
    row: VecDeque<(u64, Id)>,
    others: BinaryHeap<Reverse<(u64, Id)>>,
}

impl Times {
    /// Tells of `id` at `due_ms`.
    pub fn set(&mut self, due_ms: u64, id: Id) {
        self.others.push(Reverse((due_ms, id)));
    }

    /// The same, for what is always set as far ahead.
    pub fn set_behind(&mut self, due_ms: u64, id: Id) {
        match self.row.back() {
            Some((last_ms, _)) if *last_ms > due_ms => self.set(due_ms, id),
            _ => self.row.push_back((due_ms, id)),
        }
    }

    /// The next one that is due.
    pub fn due(&mut self, now_ms: u64) -> Option<Id> {
        let due_ms = self.next().filter(|due_ms| *due_ms <= now_ms)?;
        match self.row.front() {
            Some((first_ms, _)) if *first_ms == due_ms => self.row.pop_front().map(|(_, id)| id),
            _ => self.others.pop().map(|Reverse((_, id))| id),
        }
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<u64> {
        let row = self.row.front().map(|(due_ms, _)| *due_ms);
        let others = self.others.peek().map(|Reverse((due_ms, _))| *due_ms);
        row.into_iter().chain(others).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_id_finds_nothing_in_a_slot_used_again() {
        let mut slab = Slab::default();
        let first = slab.insert('a').unwrap();
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b').unwrap();
        assert_ne!(first, second);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&mut 'b'));
        assert_eq!(slab.len(), 1);
        for side in [Side::Client, Side::Service] {
            assert_eq!(Id::of(second.token(side)), (second, side));
        }
    }

    #[test]
    fn times_come_in_order() {
        let mut slab = Slab::default();
        let ids = [(); 3].map(|()| slab.insert(()).unwrap());
        let mut times = Times::default();
        for set in [Times::set, Times::set_behind] {
            for (due, id) in [(30, ids[0]), (10, ids[1]), (20, ids[2])] {
                set(&mut times, due, id);
            }
            times.set_behind(30, ids[1]);
            assert_eq!((times.next(), times.due(9)), (Some(10), None));
            assert_eq!(
                [times.due(20), times.due(20), times.due(20)],
                [Some(ids[1]), Some(ids[2]), None]
            );
            let mut last = [times.due(30), times.due(30)];
            last.sort();
            assert_eq!((last, times.next()), ([Some(ids[0]), Some(ids[1])], None));
        }
    }
}
