//! The state a data plane holds: one snapshot and every update since.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use super::{Change, ClusterState, Ended, Settings, Snapshot, Update};
use crate::id::{ClusterId, Generation};
use crate::limits::CLUSTERS_MAX;

/// The whole state at one generation. Cloning shares the clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Where it stands.
    pub generation: Generation,
    /// Which hub it belongs to.
    pub hub_id: Arc<str>,
    /// When control made its last step, wall clock ms.
    pub issued_unix_ms: u64,
    /// What holds for all clusters.
    pub settings: Settings,
    /// Every cluster.
    pub clusters: BTreeMap<ClusterId, Arc<ClusterState>>,
    /// Who signed out everywhere.
    pub ended: Arc<Ended>,
}

/// Why a step does not fit; the state is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Steps are missing: ask control for a snapshot.
    #[error("update {got} does not follow {have}: a snapshot is needed")]
    NeedSnapshot {
        /// What we have.
        have: Generation,
        /// What came.
        got: Generation,
    },
    /// Older than what we have.
    #[error("generation {got} is older than {have}, refused")]
    Older {
        /// What we have.
        have: Generation,
        /// What came.
        got: Generation,
    },
    /// Another hub's state.
    #[error("state of hub {got:?}; this data plane belongs to {have:?}")]
    OtherHub {
        /// Ours.
        have: Arc<str>,
        /// Theirs.
        got: Arc<str>,
    },
    /// More clusters than a data plane takes.
    #[error("more than {CLUSTERS_MAX} clusters")]
    TooMany,
}

impl State {
    /// The state of a snapshot.
    pub fn from_snapshot(snapshot: Snapshot) -> State {
        let Snapshot {
            generation,
            hub_id,
            issued_unix_ms,
            settings,
            clusters,
            ended,
        } = snapshot;
        let clusters = clusters
            .into_iter()
            .map(|cluster| (cluster.id.clone(), cluster))
            .collect();
        State {
            generation,
            hub_id,
            issued_unix_ms,
            settings,
            clusters,
            ended,
        }
    }

    /// The snapshot of this state.
    pub fn to_snapshot(&self) -> Snapshot {
        Snapshot {
            generation: self.generation,
            hub_id: self.hub_id.clone(),
            issued_unix_ms: self.issued_unix_ms,
            settings: self.settings.clone(),
            clusters: self.clusters.values().cloned().collect(),
            ended: self.ended.clone(),
        }
    }

    /// Takes a snapshot in place of what we have; an older one, or one of another hub, is refused.
    pub fn replace(&mut self, snapshot: Snapshot) -> Result<Generation, ApplyError> {
        let (have, got) = (self.generation, snapshot.generation);
        if !self.hub_id.is_empty() && self.hub_id != snapshot.hub_id {
            let (have, got) = (self.hub_id.clone(), snapshot.hub_id);
            return Err(ApplyError::OtherHub { have, got });
        }
        if got < have {
            return Err(ApplyError::Older { have, got });
        }
        *self = State::from_snapshot(snapshot);
        Ok(got)
    }

    /// Takes the step that follows this generation, as a whole or not at all.
    pub fn apply(&mut self, update: &Update) -> Result<Generation, ApplyError> {
        let (have, got) = (self.generation, update.generation);
        if got <= have {
            return Err(ApplyError::Older { have, got });
        }
        if have.0.checked_add(1) != Some(got.0) {
            return Err(ApplyError::NeedSnapshot { have, got });
        }
        let mut next = self.clone();
        for change in &update.changes {
            match change {
                Change::Upsert(cluster) => {
                    next.clusters.insert(cluster.id.clone(), cluster.clone());
                }
                Change::Remove(id) => {
                    next.clusters.remove(id);
                }
                Change::Settings(settings) => next.settings = settings.clone(),
                Change::End { subject, epoch } => {
                    Arc::make_mut(&mut next.ended).end(subject.clone(), *epoch);
                }
            }
        }
        if next.clusters.len() > CLUSTERS_MAX {
            return Err(ApplyError::TooMany);
        }
        next.generation = got;
        next.issued_unix_ms = update.issued_unix_ms;
        next.forget_ended();
        *self = next;
        Ok(got)
    }
}

impl State {
    /// Both ends of the link forget by the clock of the update, so that they hold the same bytes.
    fn forget_ended(&mut self) {
        if *self.ended == Ended::default() {
            return;
        }
        let life_s = self.settings.sign_in.as_ref().map_or(0, |it| it.life_s);
        let before = self.issued_unix_ms.saturating_sub(u64::from(life_s) * 1000);
        if self.ended.holds_before(before) {
            Arc::make_mut(&mut self.ended).forget(before);
        }
    }
}

impl ApplyError {
    /// Whether the data plane has to ask for a snapshot.
    pub fn needs_snapshot(&self) -> bool {
        matches!(self, ApplyError::NeedSnapshot { .. } | ApplyError::TooMany)
    }
}
