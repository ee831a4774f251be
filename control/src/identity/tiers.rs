//! Which groups, and which single people, have which tier at the hub itself.

use std::collections::BTreeMap;

use culvert_identity::{Tier, USER_GRANT};

/// Groups with a tier at most.
pub const TIERED_GROUPS_MAX: usize = 1_024;

/// Groups and their tiers. A group that is named twice has the higher one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiers(BTreeMap<String, Tier>);

impl Tiers {
    /// Gives a group a tier.
    pub fn give(&mut self, group: String, tier: Tier) {
        let held = self.0.entry(group).or_insert(tier);
        *held = tier.max(*held);
    }

    /// How many groups have one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The highest tier of a person: of their groups, and as `user:SUBJECT`. Nothing where none
    /// has one. No group passes for a person.
    #[must_use]
    pub fn of(&self, subject: &str, groups: &[String]) -> Option<Tier> {
        let own = self.0.get(&format!("{USER_GRANT}{subject}"));
        let groups = groups.iter().filter(|it| !it.starts_with(USER_GRANT));
        let tiers = groups.filter_map(|group| self.0.get(group)).chain(own);
        tiers.max().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_tier_of_the_groups_counts() {
        let mut tiers = Tiers::default();
        for (group, tier) in [
            ("dev", Tier::Read),
            ("ops", Tier::Admin),
            ("ops", Tier::Read),
            ("lead", Tier::Maintain),
            ("user:ana", Tier::Write),
        ] {
            tiers.give(group.to_owned(), tier);
        }
        let of = |groups: &[&str]| {
            let groups: Vec<_> = groups.iter().map(|group| (*group).to_owned()).collect();
            tiers.of("bob", &groups)
        };
        assert_eq!(of(&["dev", "lead"]), Some(Tier::Maintain));
        assert_eq!(of(&["dev", "ops"]), Some(Tier::Admin));
        assert_eq!(of(&["Dev", "ops "]), None);
        assert_eq!((of(&[]), tiers.count()), (None, 4));
        assert_eq!(of(&["user:ana", "user:bob"]), None, "no group is a person");
        assert_eq!(tiers.of("ana", &[]), Some(Tier::Write));
    }
}
