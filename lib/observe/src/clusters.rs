//! A small number for each cluster: its row in the maps.
//!
//! Rows are never set to zero, programs add to them at any time. A row that changes its owner is
//! read once, and that baseline is subtracted from then on.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use culvert_abi::{FIRST_CLUSTER, OVERFLOW, PAIR_CLUSTER, UNROUTED};

/// A freed row rests this long: connections of its old owner may linger in FIN_WAIT for a minute.
pub const REST_NS: u64 = 120_000_000_000;

/// A cluster's row in the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterIndex(pub(crate) u16);

impl ClusterIndex {
    /// Not known yet.
    pub const UNROUTED: Self = Self(UNROUTED);
    /// Of pair mode, which has no clusters.
    pub const PAIR: Self = Self(PAIR_CLUSTER);
    /// Of all clusters beyond the limit.
    pub const OVERFLOW: Self = Self(OVERFLOW);

    /// As it stands in records.
    pub fn number(self) -> u16 {
        self.0
    }
}

/// Values of label `cluster` that are no clusters, with their rows.
pub const FIXED: [(u16, &str); 3] = [
    (UNROUTED, "_unrouted"),
    (PAIR_CLUSTER, "_pair"),
    (OVERFLOW, "_overflow"),
];

/// One row.
#[derive(Debug)]
struct Row<B> {
    name: Arc<str>,
    /// Whether it is exported: a freed row keeps its name for late close records.
    live: bool,
    /// What stood in the row when its present owner got it.
    baseline: Option<Arc<B>>,
}

/// A row that is exported, as its reader keeps it: nobody waits for a reader.
#[derive(Debug)]
pub struct LiveRow<B> {
    pub index: ClusterIndex,
    pub name: Arc<str>,
    pub baseline: Option<Arc<B>>,
}

/// Which cluster has which row. `B` is what a row's baseline looks like.
#[derive(Debug)]
pub struct Clusters<B> {
    rows_max: u16,
    rows: Vec<Option<Row<B>>>,
    by_name: HashMap<Arc<str>, u16>,
    /// Freed, oldest first, each with the time from which on it rests: those that no socket ever
    /// belonged to need none.
    freed: VecDeque<(Option<u64>, u16)>,
    refused: u64,
}

impl<B> Clusters<B> {
    /// Of `rows_max` rows, the fixed ones included.
    pub fn new(rows_max: u16) -> Self {
        let mut rows = Vec::new();
        rows.resize_with(usize::from(FIRST_CLUSTER), || None);
        let mut by_name = HashMap::new();
        for (index, name) in FIXED {
            let name: Arc<str> = name.into();
            by_name.insert(Arc::clone(&name), index);
            rows[usize::from(index)] = Some(Row {
                name,
                live: true,
                baseline: None,
            });
        }
        Self {
            rows_max,
            rows,
            by_name,
            freed: VecDeque::new(),
            refused: 0,
        }
    }

    /// The row of a cluster that has one.
    pub fn find(&self, name: &str) -> Option<ClusterIndex> {
        self.by_name.get(name).map(|index| ClusterIndex(*index))
    }

    /// The row of a cluster, which gets one if there is one left: its own from before, one that
    /// was never used, or the one that rested longest, which `read` reads.
    pub fn claim(&mut self, name: &str, now_ns: u64, read: impl FnOnce(u16) -> B) -> ClusterIndex {
        if let Some(index) = self.find(name) {
            return index;
        }
        let again = self
            .freed
            .iter()
            .position(|(_, index)| self.name_of(*index) == Some(name));
        if let Some((_, index)) = again.and_then(|at| self.freed.remove(at)) {
            if let Some(row) = self.rows[usize::from(index)].as_mut() {
                row.live = true;
                self.by_name.insert(Arc::clone(&row.name), index);
            }
            return ClusterIndex(index);
        }
        let fresh = u16::try_from(self.rows.len())
            .ok()
            .filter(|it| *it < self.rows_max);
        let rested = |(since_ns, _): &mut (Option<u64>, u16)| {
            since_ns.is_none_or(|since_ns| now_ns.saturating_sub(since_ns) >= REST_NS)
        };
        let (index, baseline) = if let Some(index) = fresh {
            self.rows.push(None);
            (index, None)
        } else if let Some((_, index)) = self.freed.pop_front_if(rested) {
            (index, Some(Arc::new(read(index))))
        } else {
            self.refused += 1;
            return ClusterIndex::OVERFLOW;
        };
        let name: Arc<str> = name.into();
        self.by_name.insert(Arc::clone(&name), index);
        self.rows[usize::from(index)] = Some(Row {
            name,
            live: true,
            baseline,
        });
        ClusterIndex(index)
    }

    /// Takes a cluster's row away, which no socket belongs to any more; it rests if one `was_used`.
    /// The fixed ones stay.
    pub fn free(&mut self, name: &str, now_ns: u64, was_used: impl FnOnce(u16) -> bool) {
        let Some(index) = self
            .by_name
            .get(name)
            .copied()
            .filter(|it| *it >= FIRST_CLUSTER)
        else {
            return;
        };
        self.by_name.remove(name);
        if let Some(row) = self.rows[usize::from(index)].as_mut() {
            row.live = false;
        }
        match was_used(index) {
            true => self.freed.push_back((Some(now_ns), index)),
            false => self.freed.push_front((None, index)),
        }
    }

    /// Whose row this is or was last.
    pub fn name_of(&self, index: u16) -> Option<&str> {
        let row = self.rows.get(usize::from(index))?.as_ref()?;
        Some(&row.name)
    }

    /// Every row that is exported.
    pub fn live(&self) -> impl Iterator<Item = LiveRow<B>> {
        let rows = (0..).zip(&self.rows);
        rows.filter_map(|(index, row)| {
            let row = row.as_ref().filter(|row| row.live)?;
            Some(LiveRow {
                index: ClusterIndex(index),
                name: Arc::clone(&row.name),
                baseline: row.baseline.clone(),
            })
        })
    }

    /// How often a cluster was sent to the shared row.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(clusters: &mut Clusters<u64>, name: &str, now_ns: u64) -> u16 {
        clusters
            .claim(name, now_ns, |index| u64::from(index) * 100)
            .0
    }

    #[test]
    fn indexes_are_dense_and_stable() {
        let mut clusters = Clusters::new(8);
        assert_eq!(claim(&mut clusters, "a", 0), FIRST_CLUSTER);
        assert_eq!(claim(&mut clusters, "b", 0), FIRST_CLUSTER + 1);
        assert_eq!(claim(&mut clusters, "a", 0), FIRST_CLUSTER);
        assert_eq!(clusters.find("b").unwrap().number(), FIRST_CLUSTER + 1);
        assert_eq!(clusters.find("c"), None);
        let names: Vec<_> = clusters.live().map(|it| it.name.to_string()).collect();
        assert_eq!(names, ["_unrouted", "_pair", "_overflow", "a", "b"]);
    }

    #[test]
    fn what_has_no_row_left_shares_one_and_is_counted() {
        let mut clusters = Clusters::new(8);
        for number in 0..4 {
            claim(&mut clusters, &number.to_string(), 0);
        }
        assert_eq!(claim(&mut clusters, "one too many", 0), OVERFLOW);
        assert_eq!(claim(&mut clusters, "\"quotes\"\n", 0), OVERFLOW);
        assert_eq!(clusters.refused(), 2);
        assert_eq!(claim(&mut clusters, "_pair", 0), PAIR_CLUSTER);
    }

    #[test]
    fn a_freed_row_rests_and_its_next_owner_starts_from_nothing() {
        let mut clusters = Clusters::new(5);
        assert_eq!(claim(&mut clusters, "old", 0), FIRST_CLUSTER);
        clusters.free("old", 7, |_| true);
        assert_eq!(clusters.name_of(FIRST_CLUSTER), Some("old"), "late records");
        assert_eq!(clusters.live().count(), 3);
        assert_eq!(claim(&mut clusters, "new", 7 + REST_NS - 1), OVERFLOW);
        assert_eq!(claim(&mut clusters, "new", 7 + REST_NS), FIRST_CLUSTER);
        let last = clusters.live().last().unwrap();
        assert_eq!((&*last.name, last.baseline.as_deref()), ("new", Some(&400)));
    }

    #[test]
    fn a_cluster_that_comes_back_finds_its_own_row_as_it_left_it() {
        let mut clusters = Clusters::new(5);
        claim(&mut clusters, "blinks", 0);
        clusters.free("blinks", 1, |_| true);
        assert_eq!(claim(&mut clusters, "blinks", 2), FIRST_CLUSTER);
        assert_eq!(
            clusters.live().last().unwrap().baseline,
            None,
            "no baseline"
        );
        clusters.free("blinks", 3, |_| true);
        assert_eq!(claim(&mut clusters, "other", 3 + REST_NS), FIRST_CLUSTER);
    }

    #[test]
    fn a_row_without_sockets_needs_no_rest_and_goes_first() {
        let mut clusters = Clusters::new(6);
        claim(&mut clusters, "busy", 0);
        claim(&mut clusters, "idle", 0);
        clusters.free("busy", 1, |_| true);
        clusters.free("idle", 2, |index| index == FIRST_CLUSTER);
        assert_eq!(claim(&mut clusters, "next", 3), FIRST_CLUSTER + 1);
        assert_eq!(claim(&mut clusters, "more", 3), OVERFLOW, "it rests");
    }

    #[test]
    fn clusters_that_come_and_go_one_a_second_never_use_the_rows_up() {
        let mut clusters = Clusters::new(FIRST_CLUSTER + 200);
        for second in 0..1_100 {
            let (name, now_ns) = (second.to_string(), second * 1_000_000_000);
            assert_ne!(claim(&mut clusters, &name, now_ns), OVERFLOW, "{second}");
            clusters.free(&name, now_ns, |_| true);
        }
        assert_eq!(clusters.refused(), 0);
    }

    #[test]
    fn the_fixed_rows_cannot_be_freed() {
        let mut clusters: Clusters<u64> = Clusters::new(8);
        clusters.free("_unrouted", 0, |_| true);
        clusters.free("nobody", 0, |_| true);
        assert_eq!(clusters.live().count(), 3);
    }
}
