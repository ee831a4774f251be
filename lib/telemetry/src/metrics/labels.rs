//! Which clusters have labels of their own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::{CLUSTER_HISTOGRAMS_MAX, CLUSTER_LABELS_MAX, OTHER, OVERFLOW};

/// Which clusters have histograms of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ClusterHistograms {
    /// The first [`CLUSTER_HISTOGRAMS_MAX`].
    #[default]
    Auto,
    /// All that have a label.
    All,
    /// None.
    None,
    /// These.
    Named(Vec<String>),
}

/// Gives each cluster its own label until so many are in use.
///
/// ```
/// use culvert_telemetry::metrics::{CLUSTER_LABELS_MAX, ClusterLabels, OTHER, OVERFLOW};
///
/// let labels = ClusterLabels::default();
/// for n in 0..CLUSTER_LABELS_MAX {
///     labels.label(&format!("c{n}"));
/// }
/// assert_eq!((labels.label("c0"), labels.label("late")), ("c0", OVERFLOW));
/// assert_eq!((labels.histogram("c0"), labels.histogram("c900")), ("c0", OTHER));
/// labels.free("c0");
/// assert_eq!((labels.label("late"), labels.histogram("late")), ("late", "late"));
/// ```
pub struct ClusterLabels {
    known: RwLock<Known>,
    clusters_max: usize,
    histograms: ClusterHistograms,
    overflowed: AtomicU64,
}

#[derive(Default)]
struct Known {
    /// And whether it has histograms of its own.
    clusters: HashMap<Box<str>, bool>,
    /// How many have.
    with_histograms: usize,
}

impl Default for ClusterLabels {
    fn default() -> Self {
        Self::new(CLUSTER_LABELS_MAX, ClusterHistograms::Auto)
    }
}

impl ClusterLabels {
    /// At most `clusters_max` labels.
    #[must_use]
    pub fn new(clusters_max: usize, histograms: ClusterHistograms) -> Self {
        Self {
            known: RwLock::default(),
            clusters_max,
            histograms,
            overflowed: AtomicU64::new(0),
        }
    }

    /// How often a cluster was sent to [`OVERFLOW`].
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// The label for `cluster`: its own name, which it takes, or [`OVERFLOW`].
    pub fn label<'a>(&self, cluster: &'a str) -> &'a str {
        if self.find(cluster).is_some() || self.take(cluster) {
            return cluster;
        }
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        OVERFLOW
    }

    /// The label for `cluster` in histograms: its own name, if it has taken it as a
    /// label and is one of those, or [`OTHER`], so that no sum counts it twice.
    pub fn histogram<'a>(&self, cluster: &'a str) -> &'a str {
        match self.find(cluster) {
            Some(true) => cluster,
            _ => OTHER,
        }
    }

    /// The label of `cluster` is another's to take: nothing is counted under it any more.
    pub fn free(&self, cluster: &str) {
        let mut known = self.known.write();
        if known.clusters.remove(cluster) == Some(true) {
            known.with_histograms -= 1;
        }
    }

    /// Whether it has histograms of its own; `None` when it has no label.
    fn find(&self, cluster: &str) -> Option<bool> {
        match cluster.starts_with('_') {
            true => Some(true),
            false => self.known.read().clusters.get(cluster).copied(),
        }
    }

    /// Whether it has a label now.
    fn take(&self, cluster: &str) -> bool {
        let mut known = self.known.write();
        if known.clusters.contains_key(cluster) {
            return true;
        }
        if known.clusters.len() >= self.clusters_max {
            return false;
        }
        let own = match &self.histograms {
            ClusterHistograms::Auto => known.with_histograms < CLUSTER_HISTOGRAMS_MAX,
            ClusterHistograms::All => true,
            ClusterHistograms::None => false,
            ClusterHistograms::Named(names) => names.iter().any(|name| name == cluster),
        };
        known.clusters.insert(cluster.into(), own);
        known.with_histograms += usize::from(own);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::UNROUTED;
    use super::*;

    #[test]
    fn the_cluster_after_the_last_label_overflows() {
        let labels = ClusterLabels::default();
        for i in 0..CLUSTER_LABELS_MAX {
            let name = format!("c{i}");
            assert_eq!(labels.label(&name), name);
        }
        assert_eq!(labels.label("one-more"), OVERFLOW);
        assert_eq!(labels.label("c0"), "c0");
    }

    #[test]
    fn clusters_that_come_and_go_never_use_the_labels_up() {
        let labels = ClusterLabels::new(4, ClusterHistograms::Auto);
        for i in 0..100 {
            let name = format!("c{i}");
            assert_eq!(
                (labels.label(&name), labels.histogram(&name)),
                (&*name, &*name)
            );
            labels.free(&name);
            labels.free(&name);
        }
        assert_eq!(labels.overflowed(), 0);
    }

    #[test]
    fn who_has_histograms_of_its_own_is_said_or_comes_first() {
        let named = ClusterHistograms::Named(vec!["c40".to_owned()]);
        for (histograms, own) in [
            (ClusterHistograms::Auto, 32),
            (ClusterHistograms::All, 50),
            (ClusterHistograms::None, 0),
            (named, 1),
        ] {
            let labels = ClusterLabels::new(50, histograms.clone());
            let names: Vec<_> = (0..60).map(|n| format!("c{n}")).collect();
            for name in &names {
                assert_eq!(labels.histogram(name), OTHER, "asking takes no label");
                let _ = labels.label(name);
            }
            let shown = |name: &&String| labels.histogram(name) == name.as_str();
            assert_eq!(names.iter().filter(shown).count(), own, "{histograms:?}");
            assert_eq!(labels.histogram(UNROUTED), UNROUTED);
        }
    }
}
