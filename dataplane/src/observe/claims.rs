//! Places of clusters, in metrics and in the kernel's rows. A cluster keeps its place as long as
//! somebody counts for it or holds a socket of it, also when it left the table; then it is given
//! back, and its series go.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use culvert_engine::legs::Named;
use culvert_observe::{ClusterIndex, Observer};
use culvert_telemetry::metrics::{ClusterLabels, Metrics as Registry};
use parking_lot::Mutex;

/// A cluster, or nobody, as it is counted and tagged. Whoever holds one keeps the cluster's place.
#[derive(Debug, Clone)]
pub struct Seen {
    /// In metrics.
    pub named: Arc<Named>,
    /// In the kernel.
    pub index: ClusterIndex,
    /// Nobody's place is always there.
    _claim: Option<Arc<Claim>>,
}

impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        self.named == other.named && self.index == other.index
    }
}

impl Eq for Seen {}

impl Seen {
    /// A place that nobody can lose.
    pub(super) fn fixed(named: Arc<Named>, index: ClusterIndex) -> Self {
        Self {
            named,
            index,
            _claim: None,
        }
    }
}

/// A place that is held. The last holder's drop says so, on whatever thread, and no more: others
/// wait for that thread.
#[derive(Debug)]
struct Claim {
    cluster: Box<str>,
    named: Arc<Named>,
    index: ClusterIndex,
    released: Arc<Mutex<Vec<Box<str>>>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.released.lock().push(std::mem::take(&mut self.cluster));
    }
}

/// All places.
#[derive(Default)]
pub struct Claims {
    held: Mutex<HashMap<Box<str>, Weak<Claim>>>,
    /// Whose last holder went; no longer than the list of clusters that ever held one at once.
    released: Arc<Mutex<Vec<Box<str>>>>,
}

impl Claims {
    /// The place of a cluster: that which it has, or a new one while there are any.
    pub fn claim(&self, cluster: &str, labels: &ClusterLabels, observer: &Observer) -> Seen {
        let mut held = self.held.lock();
        let claim = held.get(cluster).and_then(Weak::upgrade);
        let claim = claim.unwrap_or_else(|| {
            let named = Named::new(labels, cluster);
            let claim = Arc::new(Claim {
                cluster: cluster.into(),
                index: observer.cluster(&named.label),
                named,
                released: self.released.clone(),
            });
            held.insert(cluster.into(), Arc::downgrade(&claim));
            claim
        });
        Seen {
            named: claim.named.clone(),
            index: claim.index,
            _claim: Some(claim),
        }
    }

    /// Gives the places back that nobody holds any more.
    pub fn sweep(&self, labels: &ClusterLabels, observer: &Observer, registry: &Registry) {
        let released = std::mem::take(&mut *self.released.lock());
        if released.is_empty() {
            return;
        }
        // Until the series are gone nobody claims anew: they would go with the old ones.
        let mut held = self.held.lock();
        let mut gone = released;
        gone.retain(|cluster| {
            let is_held = |claim: &Weak<Claim>| claim.strong_count() > 0;
            held.get(cluster).is_some_and(|claim| !is_held(claim))
        });
        for cluster in &gone {
            held.remove(cluster);
            labels.free(cluster);
            observer.forget_cluster(cluster);
        }
        registry.forget_clusters(gone.iter().map(|cluster| &**cluster));
    }
}

#[cfg(test)]
mod tests {
    use culvert_observe::Reason;

    use super::*;

    struct Rig {
        claims: Claims,
        labels: ClusterLabels,
        observer: Observer,
        registry: Registry,
    }

    impl Rig {
        fn new(labels_max: usize) -> Self {
            Self {
                claims: Claims::default(),
                labels: ClusterLabels::new(labels_max, Default::default()),
                observer: Observer::absent(Reason::Disabled),
                registry: Registry::new(),
            }
        }

        fn claim(&self, cluster: &str) -> Seen {
            self.claims.claim(cluster, &self.labels, &self.observer)
        }

        fn sweep(&self) {
            self.claims
                .sweep(&self.labels, &self.observer, &self.registry);
        }
    }

    #[test]
    fn a_place_is_kept_by_its_last_holder_and_given_back_after_him() {
        let rig = Rig::new(2);
        let bytes = rig.registry.counter_vec("a_total", "Bytes.", &["cluster"]);
        let table = rig.claim("a");
        let socket = table.clone();
        bytes.with_label_values(&[&*socket.named.label]).inc();
        let _other = rig.claim("b");
        drop(table);
        rig.sweep();
        assert_eq!(
            &*rig.claim("c").named.label,
            "_overflow",
            "the socket holds"
        );
        assert!(rig.registry.render().contains("a_total{cluster=\"a\"} 1"));
        drop(socket);
        rig.sweep();
        assert_eq!(&*rig.claim("d").named.label, "d");
        assert!(!rig.registry.render().contains("cluster=\"a\""));
    }

    #[test]
    fn a_cluster_that_comes_back_before_its_sockets_ended_goes_on() {
        let rig = Rig::new(1);
        let bytes = rig.registry.counter_vec("a_total", "Bytes.", &["cluster"]);
        let first = rig.claim("a");
        bytes.with_label_values(&[&*first.named.label]).inc();
        drop(first);
        // Back before the sweep, and gone and back again.
        drop(rig.claim("a"));
        let second = rig.claim("a");
        rig.sweep();
        assert!(rig.registry.render().contains("a_total{cluster=\"a\"} 1"));
        assert_eq!(&*second.named.label, "a");
        let third = rig.claim("a");
        assert_eq!(second, third);
        drop(second);
        rig.sweep();
        assert_eq!(&*rig.claim("b").named.label, "_overflow", "a third holds");
    }
}
