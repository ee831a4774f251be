//! Who has which row of the pair arrays. Pure: the time is an argument.

use std::collections::VecDeque;

/// A slot that was given back rests this long: a program that was running may still write to it.
pub const REST_NS: u64 = 1_000_000_000;

/// A slot that is held, and the generation that says by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotId {
    /// Row of the pair arrays.
    pub slot: u32,
    /// Never 0, and another one each time the slot is taken.
    pub generation: u32,
}

/// How many slots are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotCounts {
    /// Held by a pair.
    pub used: u32,
    /// Given back less than a second ago.
    pub resting: u32,
    /// Ready to be taken.
    pub free: u32,
}

/// The free list: first in, first out.
#[derive(Debug)]
pub struct Slots {
    slots_max: u32,
    /// Slots from here on were never taken.
    fresh: u32,
    /// Given back, oldest first, each with the time.
    returned: VecDeque<(u64, u32)>,
    generation: u32,
}

impl Slots {
    /// `slots_max` slots, all free.
    pub fn new(slots_max: u32) -> Self {
        Self {
            slots_max,
            fresh: 0,
            returned: VecDeque::new(),
            generation: 0,
        }
    }

    /// Takes the slot that rested longest, or else one that was never taken, so that no more of
    /// the arrays is touched than there were pairs at one time.
    pub fn take(&mut self, now_ns: u64) -> Option<SlotId> {
        let rested = self
            .returned
            .front()
            .is_some_and(|it| has_rested(it, now_ns));
        let slot = match self.returned.pop_front_if(|_| rested) {
            Some((_, slot)) => slot,
            None if self.fresh < self.slots_max => {
                self.fresh += 1;
                self.fresh - 1
            }
            None => return None,
        };
        self.generation = self.generation.wrapping_add(1).max(1);
        let generation = self.generation;
        Some(SlotId { slot, generation })
    }

    /// Gives a slot back; it rests from now on.
    pub fn give(&mut self, slot: u32, now_ns: u64) {
        self.returned.push_back((now_ns, slot));
    }

    /// How many are in which state.
    pub fn counts(&self, now_ns: u64) -> SlotCounts {
        let returned = count(self.returned.len());
        let rested = count(self.returned.partition_point(|it| has_rested(it, now_ns)));
        SlotCounts {
            used: self.fresh - returned,
            resting: returned - rested,
            free: self.slots_max - self.fresh + rested,
        }
    }

    /// Slots that were ever taken: none beyond holds anything.
    pub fn touched(&self) -> u32 {
        self.fresh
    }
}

fn has_rested((since_ns, _): &(u64, u32), now_ns: u64) -> bool {
    now_ns.saturating_sub(*since_ns) >= REST_NS
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_slot_rests_and_comes_back_with_another_generation() {
        let mut slots = Slots::new(1);
        let first = slots.take(5).unwrap();
        assert_eq!(slots.take(5), None, "there is one");
        slots.give(first.slot, 10);
        assert_eq!(slots.take(10 + REST_NS - 1), None, "it rests");
        let second = slots.take(10 + REST_NS).unwrap();
        assert_eq!(second.slot, first.slot);
        assert_ne!(second.generation, first.generation);
    }

    #[test]
    fn all_are_handed_out_once_and_counted() {
        let mut slots = Slots::new(65_536);
        let taken: HashSet<u32> = (0..65_536).map(|_| slots.take(0).unwrap().slot).collect();
        assert_eq!(taken.len(), 65_536);
        assert_eq!(slots.take(0), None);
        for slot in 0..100 {
            slots.give(slot, u64::from(slot));
        }
        let counts = slots.counts(REST_NS + 39);
        assert_eq!((counts.used, counts.resting, counts.free), (65_436, 60, 40));
        assert_eq!(
            slots.take(REST_NS + 39).unwrap().slot,
            0,
            "first in, first out"
        );
    }

    #[test]
    fn few_pairs_touch_few_slots() {
        let mut slots = Slots::new(1_000);
        for round in 0..500 {
            let now_ns = round * 2 * REST_NS;
            let taken = [slots.take(now_ns).unwrap(), slots.take(now_ns).unwrap()];
            taken.iter().for_each(|it| slots.give(it.slot, now_ns));
        }
        assert_eq!(slots.touched(), 2);
    }

    proptest::proptest! {
        #[test]
        fn no_slot_has_two_holders_or_too_short_a_rest(
            steps in proptest::collection::vec((0_u64..700_000_000, proptest::bool::ANY), 1..200),
            slots_max in 1_u32..6,
        ) {
            let mut slots = Slots::new(slots_max);
            let mut held: Vec<SlotId> = Vec::new();
            let (mut given, mut generations) = (vec![None; 6], HashSet::new());
            let mut now_ns = 0;
            for (pause_ns, takes) in steps {
                now_ns += pause_ns;
                let counts = slots.counts(now_ns);
                assert_eq!(counts.used + counts.resting + counts.free, slots_max);
                assert_eq!(counts.used as usize, held.len());
                if !takes {
                    if let Some(id) = held.pop() {
                        slots.give(id.slot, now_ns);
                        given[id.slot as usize] = Some(now_ns);
                    }
                    continue;
                }
                let taken = slots.take(now_ns);
                assert_eq!(taken.is_some(), counts.free > 0);
                let Some(id) = taken else { continue };
                assert!(held.iter().all(|it| it.slot != id.slot));
                assert!(generations.insert(id.generation));
                assert!(given[id.slot as usize].is_none_or(|since| now_ns - since >= REST_NS));
                held.push(id);
            }
        }
    }

    #[test]
    fn a_generation_is_never_nobodys() {
        let mut slots = Slots::new(4);
        slots.generation = u32::MAX;
        assert_eq!(slots.take(0).unwrap().generation, 1);
    }
}
