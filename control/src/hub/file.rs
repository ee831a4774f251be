//! The registry file, followed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_proto::id::ClusterId;

use super::{Hub, HubError};
use crate::audit::{Actor, Cause, Verb};
use crate::cluster::Cluster;
use crate::registry::file::{Listing, Merge, is_of_file};
use crate::store::Step;

/// A change of the file is seen within this time.
const LOOK: Duration = Duration::from_secs(1);
/// Changes that are recorded and published as one.
const STEPS_MAX: usize = 500;

impl Hub {
    /// Brings the registry to what the file says. From now on the API does not
    /// change what the file says.
    ///
    /// # Errors
    /// When the whole would break a rule, or cannot be recorded.
    pub async fn apply_file(&self, listing: Listing) -> Result<usize, HubError> {
        let mut writer = self.turn().await?;
        let now_ms = self.now_ms();
        let mut merges = listing.merge(&self.clusters.load(), now_ms)?;
        let changes = merges.len();
        let cause = cause(&listing.path);
        while !merges.is_empty() {
            let chunk = merges.drain(..merges.len().min(STEPS_MAX));
            let (steps, rows): (Vec<_>, Vec<_>) = chunk
                .map(|merge| {
                    let (verb, id, step) = step(merge);
                    let row = cause.did(verb, &id, id.as_str(), now_ms);
                    (step, row)
                })
                .unzip();
            for step in &steps {
                if let Step::Remove(id) = step {
                    self.end_delivery(id);
                }
            }
            self.commit(&mut writer, steps, rows).await?;
        }
        self.listing.store(Arc::new(listing));
        Ok(changes)
    }

    /// Applies the file at `path` whenever it changes. A file that is wrong changes
    /// nothing. Runs until dropped.
    pub async fn follow_file(&self, path: &Path) {
        // Read once more at first: it may have changed since it was applied.
        let mut seen = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = stamp(path);
            if now == seen {
                continue;
            }
            let applied = match Listing::read(path) {
                Ok(listing) => self.apply_file(listing).await,
                Err(why) => Err(why.into()),
            };
            match applied {
                Ok(0) => {}
                Ok(changes) => tracing::info!(changes, "registry file applied"),
                Err(error @ (HubError::Store(_) | HubError::Overtaken)) => {
                    tracing::warn!(%error, "registry file cannot be recorded; trying again");
                    continue;
                }
                Err(error) => tracing::warn!(%error, "registry file refused; nothing changed"),
            }
            seen = now;
        }
    }

    /// Whether the registry file lists the cluster.
    #[must_use]
    pub fn is_listed(&self, id: &ClusterId) -> bool {
        self.listing.load().clusters.contains_key(id)
    }

    /// Whether the file keeps the API from what it is about to do with tokens.
    pub(super) fn free_tokens(&self, cluster: &Cluster) -> Result<(), HubError> {
        let listing = self.listing.load();
        let listed = listing.clusters.get(&cluster.id);
        if listed.is_none_or(|listed| listed.tokens.is_empty()) {
            return Ok(());
        }
        Err(self.owned_by_file(&cluster.id, "tokens"))
    }

    pub(super) fn free_token(&self, id: &ClusterId, token_id: &str) -> Result<(), HubError> {
        if is_of_file(token_id) && self.is_listed(id) {
            return Err(self.owned_by_file(id, "tokens"));
        }
        Ok(())
    }

    pub(super) fn owned_by_file(&self, id: &ClusterId, what: &str) -> HubError {
        HubError::OwnedByFile {
            cluster: id.clone(),
            what: what.to_owned(),
            path: self.listing.load().path.display().to_string(),
        }
    }
}

fn step(merge: Merge) -> (Verb, ClusterId, Step) {
    let put = |verb, cluster: Cluster| (verb, cluster.id.clone(), Step::Put(Arc::new(cluster)));
    match merge {
        Merge::Create(cluster) => put(Verb::ClusterCreate, cluster),
        Merge::Update(cluster) => put(Verb::ClusterUpdate, cluster),
        Merge::Delete(id) => (Verb::ClusterDelete, id.clone(), Step::Remove(id)),
    }
}

fn cause(path: &Path) -> Cause {
    Cause {
        actor: Actor {
            sub: "registry-file".to_owned(),
            email: String::new(),
            groups: Vec::new(),
        },
        request_id: String::new(),
        route: path.display().to_string(),
        transport: "file",
    }
}

/// What tells one content from another without reading it.
fn stamp(path: &Path) -> Option<(SystemTime, u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}
