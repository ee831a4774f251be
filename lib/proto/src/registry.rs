//! The live sessions of one data plane (P9): who serves a cluster, decided without a clock or I/O.
//!
//! An epoch only rises; a session leaves only under its own epoch; a revoked session can neither
//! stay nor come back. An agent joins in two steps: [`Registry::admit`] before the 101, which
//! carries the epoch, and [`Registry::attach`] once its carrier runs.

mod cluster;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::close::CloseReason;
use crate::id::{ClusterId, Epoch, InstanceId, SessionKey};
use crate::limits::SESSIONS_DEFAULT_MAX;
use cluster::Cluster;

/// What a second agent of a cluster does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// All serve; carriers without an instance id replace each other.
    #[default]
    Spread,
    /// The last one serves.
    Replace,
    /// The first one serves.
    Refuse,
}

/// How much a session may still be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Serves new streams.
    #[default]
    Serving,
    /// We asked the agent to move: used only where nothing else serves.
    Leaving,
    /// The agent is about to stop: no new stream.
    Closed,
}

/// One agent that wants to serve.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The cluster of its credential.
    pub cluster: ClusterId,
    /// The agent process, where the carrier names one.
    pub instance: Option<InstanceId>,
    /// The cluster's policy.
    pub policy: Policy,
    /// The cluster's epoch floor when the credential was accepted.
    pub floor: Epoch,
}

/// Leave to attach under a reserved epoch. Dropping it costs nothing but the number.
#[derive(Clone, Debug)]
pub struct Admission {
    key: SessionKey,
    policy: Policy,
    floor: Epoch,
}

/// The session is current from now on.
#[derive(Debug)]
pub struct Attached<H> {
    /// The new session.
    pub key: SessionKey,
    /// Sessions it took the place of: say BYE(replaced), let their streams end.
    pub evicted: Vec<(SessionKey, H)>,
}

/// Why a session may not attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another agent serves and the policy is refuse.
    #[error("another agent of this cluster is connected and the policy refuses a second")]
    Duplicate,
    /// Agents replaced each other too often.
    #[error("agents of this cluster replace each other; held down for {remaining_ms} ms")]
    HoldDown {
        /// Until the next attempt may succeed, ms.
        remaining_ms: u64,
    },
    /// The cluster was revoked after the credential was accepted.
    #[error("the cluster was revoked while the agent connected")]
    Revoked,
    /// A session admitted later has attached already.
    #[error("a newer session of this agent is connected")]
    Stale,
    /// The cluster or the data plane is full.
    #[error("as many sessions as allowed are connected")]
    Full,
}

/// Whether a cluster can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// No session.
    Absent,
    /// Sessions, but all of them are about to go.
    Draining,
    /// This many sessions take new streams.
    Serving(usize),
}

/// What the registry counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sessions attached.
    pub attached: u64,
    /// Sessions that displaced a serving session of another, or an unnamed, agent.
    pub swaps: u64,
    /// Sessions replaced by a newer one of the same agent.
    pub renewals: u64,
    /// Times a cluster entered hold-down.
    pub hold_downs: u64,
}

/// Live sessions by cluster. Read a cluster's floor from the table and call [`Registry::admit`]
/// under one lock, and swap the table before [`Registry::revoke`]: then no revocation is missed.
#[derive(Debug)]
pub struct Registry<H> {
    clusters: BTreeMap<ClusterId, Cluster<H>>,
    last_epoch: u64,
    sessions: usize,
    sessions_max: usize,
    counts: Counts,
}

// === impl Registry ===

impl<H> Registry<H> {
    /// An empty registry. Epochs start above `epoch_seed`: the wall clock in ms, or the highest
    /// epoch known, whichever is larger, so that they rise across restarts.
    pub fn new(epoch_seed: u64) -> Self {
        Self::with_limit(epoch_seed, SESSIONS_DEFAULT_MAX)
    }

    /// As [`Registry::new`], with a limit of sessions.
    pub fn with_limit(epoch_seed: u64, sessions_max: usize) -> Self {
        Registry {
            clusters: BTreeMap::new(),
            last_epoch: epoch_seed,
            sessions: 0,
            sessions_max,
            counts: Counts::default(),
        }
    }

    /// Reserves an epoch for an agent that may serve, or says why it may not. Nobody is displaced.
    pub fn admit(&mut self, candidate: Candidate, now_ms: u64) -> Result<Admission, Refused> {
        let Candidate {
            cluster,
            instance,
            policy,
            floor,
        } = candidate;
        let epoch = self
            .last_epoch
            .checked_add(1)
            .ok_or(Refused::Full)?
            .max(floor.0);
        let instance = instance.unwrap_or(InstanceId::NONE);
        let key = SessionKey {
            cluster,
            instance,
            epoch: Epoch(epoch),
        };
        let admission = Admission { key, policy, floor };
        self.judge(&admission, now_ms)?;
        self.last_epoch = epoch;
        Ok(admission)
    }

    /// Makes an admitted session current at once; what it displaces serves nothing from now on.
    pub fn attach(
        &mut self,
        admission: Admission,
        now_ms: u64,
        handle: H,
    ) -> Result<Attached<H>, Refused> {
        let swaps = self.judge(&admission, now_ms)?;
        let Admission { key, policy, floor } = admission;
        let cluster = self.clusters.entry(key.cluster.clone()).or_default();
        if swaps {
            cluster.note_swap(now_ms);
            self.counts.swaps += 1;
        }
        let evicted = cluster.replace(key.clone(), policy, floor, handle);
        let own = evicted
            .iter()
            .filter(|(old, _)| !key.instance.is_none() && old.instance == key.instance);
        self.counts.renewals += own.count() as u64;
        self.counts.attached += 1;
        self.sessions += 1;
        self.sessions -= evicted.len();
        Ok(Attached { key, evicted })
    }

    /// Whether `admission` may attach now; `Ok(true)` = it displaces another agent's session.
    fn judge(&mut self, admission: &Admission, now_ms: u64) -> Result<bool, Refused> {
        let Admission { key, policy, floor } = admission;
        let Some(cluster) = self.clusters.get_mut(&key.cluster) else {
            return if self.sessions < self.sessions_max {
                Ok(false)
            } else {
                Err(Refused::Full)
            };
        };
        let effect = cluster.judge(key, *policy, *floor)?;
        if self.sessions - effect.evicts >= self.sessions_max {
            return Err(Refused::Full);
        }
        if effect.swaps
            && let Err(held) = cluster.may_swap(now_ms)
        {
            self.counts.hold_downs += u64::from(held.entered);
            return Err(Refused::HoldDown {
                remaining_ms: held.remaining_ms,
            });
        }
        Ok(effect.swaps)
    }

    /// Takes a session out. Only an equal epoch is removed; an old session that ends late changes
    /// nothing and gets `None`.
    pub fn detach(&mut self, key: &SessionKey) -> Option<H> {
        let handle = self.clusters.get_mut(&key.cluster)?.take(key)?;
        self.sessions -= 1;
        Some(handle)
    }

    /// The session to open the next stream on: the least loaded of those that serve, in turn where
    /// loads are equal; one that is leaving only where none serves.
    pub fn pick(&self, cluster: &ClusterId, load: impl Fn(&H) -> u64) -> Option<&H> {
        self.clusters.get(cluster)?.pick(load)
    }

    /// Raises the floor of a cluster. Every session accepted below it is dead and returned; agents
    /// admitted below it cannot attach any more.
    pub fn revoke(&mut self, cluster: &ClusterId, floor: Epoch) -> Vec<(SessionKey, H)> {
        let entry = self.clusters.entry(cluster.clone()).or_default();
        let dead = entry.revoke(floor);
        self.sessions -= dead.len();
        dead
    }

    /// Forgets a cluster that left the table; all its sessions are dead and returned.
    pub fn remove(&mut self, cluster: &ClusterId) -> Vec<(SessionKey, H)> {
        let dead = self
            .clusters
            .remove(cluster)
            .map(Cluster::into_sessions)
            .unwrap_or_default();
        self.sessions -= dead.len();
        dead
    }

    /// Changes the standing of a current session; false when it is not current.
    pub fn set_standing(&mut self, key: &SessionKey, standing: Standing) -> bool {
        self.clusters
            .get_mut(&key.cluster)
            .is_some_and(|c| c.set_standing(key, standing))
    }

    /// Marks every serving session as leaving: the data plane drains.
    pub fn leave_all(&mut self) {
        self.clusters.values_mut().for_each(Cluster::leave_all);
    }

    /// The handle of a current session; `None` for a stale epoch.
    pub fn get(&self, key: &SessionKey) -> Option<&H> {
        self.clusters.get(&key.cluster)?.get(key)
    }

    /// Whether a session may serve at all: a stale epoch may not.
    pub fn is_current(&self, key: &SessionKey) -> bool {
        self.get(key).is_some()
    }

    /// Whether a cluster can be served.
    pub fn presence(&self, cluster: &ClusterId) -> Presence {
        self.clusters
            .get(cluster)
            .map_or(Presence::Absent, Cluster::presence)
    }

    /// Every current session, by cluster.
    pub fn iter(&self) -> impl Iterator<Item = (&SessionKey, Standing, &H)> {
        self.clusters.values().flat_map(Cluster::iter)
    }

    /// Current sessions.
    pub fn len(&self) -> usize {
        self.sessions
    }

    /// Whether no session is current.
    pub fn is_empty(&self) -> bool {
        self.sessions == 0
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

// === impl Admission, Refused, Policy, Presence ===

impl Admission {
    /// The key the session will have; its epoch goes into the 101.
    pub fn key(&self) -> &SessionKey {
        &self.key
    }
}

impl Refused {
    /// The answer to give.
    pub fn close_reason(self) -> CloseReason {
        match self {
            Refused::Duplicate => CloseReason::Duplicate,
            Refused::HoldDown { .. } => CloseReason::HoldDown,
            Refused::Revoked => CloseReason::TokenRevoked,
            Refused::Stale => CloseReason::StaleEpoch,
            Refused::Full => CloseReason::TooManySessions,
        }
    }
}

impl Policy {
    /// The word in files, API and CLI.
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::Spread => "spread",
            Policy::Replace => "replace",
            Policy::Refuse => "refuse",
        }
    }

    /// The policy of a word.
    pub fn from_word(word: &str) -> Option<Policy> {
        [Policy::Spread, Policy::Replace, Policy::Refuse]
            .into_iter()
            .find(|p| p.as_str() == word)
    }
}

impl Presence {
    /// Why a request for the cluster cannot be served; `None` when it can.
    pub fn close_reason(self) -> Option<CloseReason> {
        match self {
            Presence::Absent => Some(CloseReason::AgentAbsent),
            Presence::Draining => Some(CloseReason::AgentDraining),
            Presence::Serving(_) => None,
        }
    }
}
