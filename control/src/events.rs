//! What changed, in order, for whoever watches: a bounded log without I/O or clock, and what
//! turns one look at the state after another into its entries.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Changes that are kept; who is further behind starts anew.
pub const EVENTS_MAX: usize = 4_096;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// A registered cluster.
    Cluster,
    /// An agent's session.
    Agent,
    /// The licence's standing.
    License,
    /// The audit log has new rows.
    Audit,
}

/// One change: the thing as it is now, or that it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub topic: Topic,
    /// Whether the thing is gone.
    pub is_removed: bool,
    /// The thing as the API shows it, JSON; what names it when it is gone.
    pub data: Arc<str>,
}

/// The place of an event: which process made it, and how many there were then, it included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the process: places of another one are not places here.
    pub boot: u64,
    /// Events, it included.
    pub count: u64,
}

/// The text is no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is {0:?}, none that this API gave")]
pub struct NoPlace(String);

/// The newest changes, oldest first.
pub struct Log {
    boot: u64,
    /// Events up to the oldest that is kept.
    dropped: u64,
    kept: VecDeque<Event>,
}

impl Topic {
    /// The name of an event in a stream.
    #[must_use]
    pub fn name(self, is_removed: bool) -> &'static str {
        match (self, is_removed) {
            (Self::Cluster, false) => "cluster",
            (Self::Cluster, true) => "cluster_removed",
            (Self::Agent, false) => "agent",
            (Self::Agent, true) => "agent_removed",
            (Self::License, _) => "license",
            (Self::Audit, _) => "audit",
        }
    }
}

impl Log {
    /// An empty log of the process `boot`.
    #[must_use]
    pub fn new(boot: u64) -> Self {
        Self {
            boot,
            dropped: 0,
            kept: VecDeque::new(),
        }
    }

    /// Behind the newest event.
    #[must_use]
    pub fn end(&self) -> Place {
        Place {
            boot: self.boot,
            count: self.dropped + self.kept.len() as u64,
        }
    }

    /// Adds one; the oldest goes where there is no room.
    pub fn push(&mut self, event: Event) {
        if self.kept.len() == EVENTS_MAX {
            self.kept.pop_front();
            self.dropped += 1;
        }
        self.kept.push_back(event);
    }

    /// At most `most` events behind `place`, each with its own place; `None` where they are not
    /// all kept any more, or the place is of another process.
    #[must_use]
    pub fn after(&self, place: Place, most: usize) -> Option<Vec<(Place, Event)>> {
        let skip = place.count.checked_sub(self.dropped)?;
        if place.boot != self.boot || place.count > self.end().count {
            return None;
        }
        let skip = usize::try_from(skip).ok()?;
        let events = self.kept.iter().skip(skip).take(most);
        let places = (place.count + 1..).map(|count| Place { count, ..place });
        Some(places.zip(events.cloned()).collect())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.boot, self.count)
    }
}

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let wrong = || NoPlace(text.chars().take(64).collect());
        let (boot, count) = text.trim().split_once('-').ok_or_else(wrong)?;
        Ok(Self {
            boot: u64::from_str_radix(boot, 16).map_err(|_| wrong())?,
            count: count.parse().map_err(|_| wrong())?,
        })
    }
}

/// The state as it was seen last: for each thing what identifies its present form.
#[derive(Default)]
pub struct Watched(BTreeMap<(Topic, String), u64>);

/// How a thing differs from when it was seen last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It is new, or has another form.
    Changed(Topic, String),
    /// It is gone.
    Removed(Topic, String),
}

impl Watched {
    /// Looks at everything there is now; what differs from the look before, by topic and name.
    pub fn look(
        &mut self,
        now: impl IntoIterator<Item = ((Topic, String), u64)>,
    ) -> Vec<Difference> {
        let now: BTreeMap<_, _> = now.into_iter().collect();
        let changed = now
            .iter()
            .filter(|(thing, form)| self.0.get(*thing) != Some(*form));
        let changed = changed.map(|((topic, name), _)| Difference::Changed(*topic, name.clone()));
        let gone = self.0.keys().filter(|thing| !now.contains_key(*thing));
        let gone = gone.map(|(topic, name)| Difference::Removed(*topic, name.clone()));
        // What is gone comes first: a name may be taken again by what is new.
        let differences = gone.chain(changed).collect();
        self.0 = now;
        differences
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(n: usize) -> Event {
        Event {
            topic: Topic::Cluster,
            is_removed: false,
            data: n.to_string().into(),
        }
    }

    #[test]
    fn who_comes_back_misses_nothing_or_is_told_to_start_anew() {
        let mut log = Log::new(7);
        let start = log.end();
        for n in 0..EVENTS_MAX + 10 {
            log.push(event(n));
        }
        assert_eq!(log.after(start, 1), None, "the oldest are gone");
        let place = Place { boot: 7, count: 10 };
        let all = log.after(place, usize::MAX).unwrap();
        assert_eq!((all.len(), &*all[0].1.data), (EVENTS_MAX, "10"));
        assert_eq!(all[0].0.count, 11);
        assert_eq!(log.after(log.end(), 9), Some(Vec::new()));
        let ahead = Place {
            count: log.end().count + 1,
            ..place
        };
        assert_eq!(log.after(ahead, 1), None, "a place that was never given");
        assert_eq!(log.after(Place { boot: 8, ..place }, 1), None);
    }

    #[test]
    fn places_are_texts_and_other_texts_are_no_places() {
        let place = Place {
            boot: u64::MAX,
            count: 12,
        };
        assert_eq!(place.to_string().parse(), Ok(place));
        for text in ["", "-", "1", "x-1", "1-x", "1--1", "1-1-1"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    proptest! {
        /// Whatever happens between two looks, the differences lead from one state to the other.
        #[test]
        fn differences_lead_from_each_state_to_the_next(
            states in prop::collection::vec(prop::collection::btree_map("[a-d]", 0..3_u64, 0..5), 1..6)
        ) {
            let mut watched = Watched::default();
            let mut shown = BTreeMap::new();
            for state in states {
                let now = state.iter().map(|(name, form)| ((Topic::Agent, name.clone()), *form));
                for difference in watched.look(now) {
                    match difference {
                        Difference::Changed(_, name) => {
                            let form = state[&name];
                            prop_assert_ne!(shown.insert(name, form), Some(form));
                        }
                        Difference::Removed(_, name) => {
                            prop_assert!(shown.remove(&name).is_some());
                        }
                    }
                }
                prop_assert_eq!(&shown, &state);
            }
        }
    }
}
