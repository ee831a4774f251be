//! What travels between control and agents through this data plane: tokens on
//! their way down, facts on their way up.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use culvert_net::crypto::sha256;
use culvert_proto::id::{ClusterId, InstanceId};
use culvert_proto::limits::{LABELS_MAX, REPORT_ENTRIES_MAX};
use culvert_proto::token::{Digest, TokenText};
use culvert_proto::update::{Report, RotatedFact, Rotation, SessionFact, State, TokenUse};

use crate::plane::{Plane, unix_ms};
use crate::sessions::Session;

/// Facts are repeated in reports for this long, because a report may be
/// replaced by a newer one before it has left.
const REPEAT: Duration = Duration::from_secs(60);
/// Tokens that may wait for agents.
const ROTATIONS_MAX: usize = 10_000;

/// Tokens that wait for agents, and what agents did with them.
#[derive(Default)]
pub struct Links {
    rotations: Mutex<HashMap<ClusterId, Rotation>>,
    rotated: Mutex<HashMap<(ClusterId, InstanceId), (Instant, Digest)>>,
}

impl Links {
    /// A token that the agents of a cluster should store.
    pub fn offer(&self, rotation: Rotation) {
        let mut rotations = self.rotations.lock();
        if rotations.len() < ROTATIONS_MAX || rotations.contains_key(&rotation.cluster) {
            rotations.insert(rotation.cluster.clone(), rotation);
        }
    }

    /// Forgets tokens that the state does not list any more.
    pub fn keep_listed(&self, state: &State) {
        self.rotations.lock().retain(|cluster, rotation| {
            let tokens = state.clusters.get(cluster).map(|cluster| &cluster.tokens);
            tokens.is_some_and(|tokens| tokens.iter().any(|token| token.id == rotation.token_id))
        });
    }

    /// The token that `session` should store, unless it came with it.
    pub fn rotation(&self, session: &Session) -> Option<(u64, TokenText)> {
        let rotations = self.rotations.lock();
        let rotation = rotations.get(&session.key.cluster)?;
        if rotation.token_id == session.facts.token_id {
            return None;
        }
        let digest = Digest(sha256(rotation.token.expose().as_bytes()));
        let key = (session.key.cluster.clone(), session.key.instance);
        if self
            .rotated
            .lock()
            .get(&key)
            .is_some_and(|(_, stored)| *stored == digest)
        {
            return None;
        }
        Some((rotation.not_before_unix_s, rotation.token.duplicate()))
    }

    /// The agent of `session` stored the token of `digest`.
    pub fn rotated(&self, session: &Session, digest: Digest) {
        let mut rotated = self.rotated.lock();
        rotated.retain(|_, (since, _)| since.elapsed() < REPEAT);
        if rotated.len() < REPORT_ENTRIES_MAX {
            let key = (session.key.cluster.clone(), session.key.instance);
            rotated.insert(key, (Instant::now(), digest));
        }
    }

    fn rotated_facts(&self) -> Vec<RotatedFact> {
        let rotated = self.rotated.lock();
        let fresh = rotated
            .iter()
            .filter(|(_, (since, _))| since.elapsed() < REPEAT);
        fresh
            .map(|((cluster, instance), (_, digest))| RotatedFact {
                cluster: cluster.clone(),
                instance: *instance,
                digest: *digest,
            })
            .collect()
    }
}

/// Everything control wants to know of this data plane.
pub fn report(plane: &Plane, dataplane_id: &Arc<str>, started_unix_ms: u64) -> Report {
    let sessions = plane.sessions.list(REPORT_ENTRIES_MAX);
    let recent = |session: &&Arc<Session>| session.facts.began.elapsed() < REPEAT;
    let token_uses = sessions.iter().filter(recent).map(|session| TokenUse {
        cluster: session.key.cluster.clone(),
        token_id: session.facts.token_id.clone(),
        last_used_unix_ms: unix_of(session),
    });
    Report {
        generation: plane.table.load().generation,
        dataplane_id: dataplane_id.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        started_unix_ms,
        draining: plane.is_draining(),
        token_uses: token_uses.collect(),
        sessions: sessions.iter().map(fact).collect(),
        rotated: plane.links.rotated_facts(),
    }
}

fn unix_of(session: &Session) -> u64 {
    let age = u64::try_from(session.facts.began.elapsed().as_millis()).unwrap_or(0);
    unix_ms().saturating_sub(age)
}

fn fact(session: &Arc<Session>) -> SessionFact {
    let key = &session.key;
    let mut fact = SessionFact::new(key.cluster.clone(), key.instance, key.epoch);
    fact.connected_unix_ms = unix_of(session);
    fact.last_seen_unix_ms = unix_ms();
    fact.rtt_ms = session.carrier.rtt_ms().unwrap_or(0);
    fact.streams = session.live();
    fact.protocol = session.facts.kind.as_str().into();
    fact.version = session.facts.version.as_str().into();
    fact.address = session.facts.peer.to_string().into();
    fact.token_id = session.facts.token_id.clone();
    fact.draining = session.carrier.is_draining();
    if let Some(agent) = session.agent.get() {
        fact.region = agent.region.as_str().into();
        let labels = agent.labels.iter().take(LABELS_MAX);
        fact.labels = labels
            .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
            .collect();
    }
    fact
}
