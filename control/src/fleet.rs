//! What data planes report: who is connected where (C-35). Facts in memory,
//! rebuilt from the next report of each data plane after a restart.

use std::collections::{BTreeMap, HashMap, HashSet};

use culvert_proto::id::{ClusterId, Generation, InstanceId};
use culvert_proto::token::Digest;
use culvert_proto::update::{Report, SessionFact};
use culvert_rpc::LinkId;

use crate::store::Touch;

/// Agents that are remembered after they left.
pub const GONE_AGENTS_MAX: usize = 10_000;
/// Data planes that are remembered after they left.
pub const GONE_DATAPLANES_MAX: usize = 256;
/// How long both are remembered.
pub const GONE_MS_MAX: u64 = 24 * 3_600_000;

/// A data plane and what it said last.
#[derive(Clone, Debug)]
pub struct Dataplane {
    /// Its own name; the peer's until it reported one.
    pub id: String,
    /// The other end of the link, for people.
    pub peer: String,
    /// Its open link; `None` when it is gone.
    pub link: Option<LinkId>,
    /// The generation it holds.
    pub generation: Generation,
    /// Its version.
    pub version: String,
    /// Whether it is about to stop.
    pub draining: bool,
    /// Live sessions.
    pub sessions: usize,
    /// Milliseconds since 1970.
    pub last_report_unix_ms: Option<u64>,
    /// When the link ended; milliseconds since 1970.
    gone_unix_ms: u64,
}

/// Where an agent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Presence {
    /// In the last report of its data plane.
    Connected,
    /// The link to its data plane is down; its tunnel may well live.
    Unknown,
    /// Left.
    Gone,
}

/// An agent and what was last reported about it.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The facts.
    pub fact: SessionFact,
    /// Which data plane said so.
    pub dataplane: String,
    /// Where it stands.
    pub presence: Presence,
}

/// The facts about all data planes and agents.
#[derive(Default)]
pub struct Fleet {
    /// Rises with whatever it was told.
    pub changes: u64,
    links: HashMap<LinkId, String>,
    dataplanes: BTreeMap<String, Dataplane>,
    agents: BTreeMap<(ClusterId, InstanceId), Agent>,
    stored_by: HashMap<(ClusterId, [u8; 32]), HashSet<InstanceId>>,
    uses: HashMap<ClusterId, Uses>,
}

#[derive(Default)]
struct Uses {
    last_connected_unix_ms: Option<u64>,
    tokens: HashMap<String, u64>,
    is_new: bool,
}

impl Fleet {
    /// A data plane subscribed.
    pub fn opened(&mut self, link: LinkId, peer: &str) {
        self.take_link(link, peer.to_owned(), peer);
    }

    /// A subscription ended.
    pub fn closed(&mut self, link: LinkId, now_ms: u64) {
        self.changes += 1;
        let Some(id) = self.links.remove(&link) else {
            return;
        };
        if let Some(dataplane) = self.dataplanes.get_mut(&id)
            && dataplane.link == Some(link)
        {
            dataplane.link = None;
            dataplane.gone_unix_ms = now_ms;
            let theirs = self
                .agents
                .values_mut()
                .filter(|agent| agent.dataplane == id);
            for agent in theirs.filter(|agent| agent.presence == Presence::Connected) {
                agent.presence = Presence::Unknown;
            }
        }
        self.forget(now_ms);
    }

    /// Whether a connected data plane does not use `generation` yet.
    pub fn is_behind(&self, generation: Generation) -> bool {
        let mut connected = self
            .dataplanes
            .values()
            .filter(|plane| plane.link.is_some());
        connected.any(|plane| plane.generation < generation)
    }

    /// A data plane said what it sees.
    pub fn report(&mut self, link: LinkId, report: Report, now_ms: u64) {
        self.changes += 1;
        let Some(dataplane) = self.of_link(link) else {
            return;
        };
        let peer = dataplane.peer.clone();
        let id = match &*report.dataplane_id {
            "" => dataplane.id.clone(),
            id => id.to_owned(),
        };
        self.take_link(link, id.clone(), &peer);
        if let Some(dataplane) = self.dataplanes.get_mut(&id) {
            dataplane.generation = report.generation;
            dataplane.version = report.version.to_string();
            dataplane.draining = report.draining;
            dataplane.sessions = report.sessions.len();
            dataplane.last_report_unix_ms = Some(now_ms);
        }
        let theirs = self
            .agents
            .values_mut()
            .filter(|agent| agent.dataplane == id);
        theirs.for_each(|agent| agent.presence = Presence::Gone);
        for fact in report.sessions {
            self.used(&fact.cluster, &fact.token_id, now_ms);
            self.uses
                .entry(fact.cluster.clone())
                .or_default()
                .last_connected_unix_ms = Some(now_ms);
            let agent = Agent {
                dataplane: id.clone(),
                presence: Presence::Connected,
                fact,
            };
            self.agents
                .insert((agent.fact.cluster.clone(), agent.fact.instance), agent);
        }
        for used in report.token_uses {
            self.used(
                &used.cluster,
                &used.token_id,
                used.last_used_unix_ms.min(now_ms),
            );
        }
        for stored in report.rotated {
            let holders = self
                .stored_by
                .entry((stored.cluster, stored.digest.0))
                .or_default();
            holders.insert(stored.instance);
        }
        self.forget(now_ms);
    }

    /// Data planes, by id.
    pub fn dataplanes(&self) -> impl Iterator<Item = &Dataplane> {
        self.dataplanes.values()
    }

    /// Agents, by cluster and instance.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.agents.values()
    }

    /// Agents that did not leave: connected, or their data plane does not report.
    pub fn present(&self) -> impl Iterator<Item = &Agent> {
        self.agents()
            .filter(|agent| agent.presence != Presence::Gone)
    }

    /// Agents of one cluster that are connected.
    pub fn connected(&self, cluster: &ClusterId) -> impl Iterator<Item = &Agent> {
        let from = (cluster.clone(), InstanceId([0; 16]));
        self.agents
            .range(from..)
            .take_while(move |((other, _), _)| other == cluster)
            .map(|(_, agent)| agent)
            .filter(|agent| agent.presence == Presence::Connected)
    }

    /// Whether every connected agent that can take a token over the tunnel has
    /// stored this one, and at least one did.
    #[must_use]
    pub fn is_delivered(&self, cluster: &ClusterId, digest: &Digest) -> bool {
        let Some(holders) = self.stored_by.get(&(cluster.clone(), digest.0)) else {
            return false;
        };
        let mut able = self.connected(cluster).filter(|agent| agent.can_rotate());
        able.all(|agent| holders.contains(&agent.fact.instance))
    }

    /// Forgets who stored tokens of `cluster`.
    pub fn delivery_over(&mut self, cluster: &ClusterId) {
        self.stored_by.retain(|(other, _), _| other != cluster);
    }

    /// The highest epoch reported for `cluster`.
    #[must_use]
    pub fn highest_epoch(&self, cluster: &ClusterId) -> u64 {
        let of_cluster = self
            .agents
            .iter()
            .filter(|((other, _), _)| other == cluster);
        of_cluster
            .map(|(_, agent)| agent.fact.epoch.0)
            .max()
            .unwrap_or(0)
    }

    /// When a token of `cluster` was last used, if that was since the start.
    #[must_use]
    pub fn last_used(&self, cluster: &ClusterId, token_id: &str) -> Option<u64> {
        self.uses.get(cluster)?.tokens.get(token_id).copied()
    }

    /// When an agent of `cluster` was last connected, if that was since the start.
    #[must_use]
    pub fn last_connected(&self, cluster: &ClusterId) -> Option<u64> {
        self.uses.get(cluster)?.last_connected_unix_ms
    }

    /// What is to be recorded since the last call.
    pub fn take_touched(&mut self) -> Vec<Touch> {
        let new = self.uses.iter_mut().filter(|(_, uses)| uses.is_new);
        new.map(|(cluster, uses)| {
            uses.is_new = false;
            Touch {
                cluster: cluster.clone(),
                last_connected_unix_ms: uses.last_connected_unix_ms,
                tokens: uses
                    .tokens
                    .iter()
                    .map(|(id, at)| (id.clone(), *at))
                    .collect(),
            }
        })
        .collect()
    }

    /// Forgets a cluster that was removed.
    pub fn remove(&mut self, cluster: &ClusterId) {
        self.changes += 1;
        self.uses.remove(cluster);
        self.delivery_over(cluster);
        self.agents.retain(|(other, _), _| other != cluster);
    }

    fn of_link(&mut self, link: LinkId) -> Option<&mut Dataplane> {
        self.dataplanes.get_mut(self.links.get(&link)?)
    }

    /// Gives the link the name `id`; a provisional name disappears.
    fn take_link(&mut self, link: LinkId, id: String, peer: &str) {
        if let Some(before) = self.links.insert(link, id.clone())
            && before != id
        {
            self.dataplanes.remove(&before);
        }
        let dataplane = self
            .dataplanes
            .entry(id)
            .or_insert_with_key(|id| Dataplane {
                id: id.clone(),
                peer: peer.to_owned(),
                link: Some(link),
                generation: Generation(0),
                version: String::new(),
                draining: false,
                sessions: 0,
                last_report_unix_ms: None,
                gone_unix_ms: 0,
            });
        // A newer link of the same data plane is never undone by an older one.
        if dataplane.link.is_none_or(|held| held <= link) {
            dataplane.link = Some(link);
            peer.clone_into(&mut dataplane.peer);
        }
    }

    fn used(&mut self, cluster: &ClusterId, token_id: &str, at_unix_ms: u64) {
        let uses = self.uses.entry(cluster.clone()).or_default();
        uses.is_new = true;
        if token_id.is_empty() {
            return;
        }
        let at = uses.tokens.entry(token_id.to_owned()).or_default();
        *at = at_unix_ms.max(*at);
    }

    fn forget(&mut self, now_ms: u64) {
        let old = |at: u64| at.saturating_add(GONE_MS_MAX) <= now_ms;
        self.agents.retain(|_, agent| {
            agent.presence == Presence::Connected || !old(agent.fact.last_seen_unix_ms)
        });
        self.dataplanes
            .retain(|_, plane| plane.link.is_some() || !old(plane.gone_unix_ms));
        let gone = self
            .agents
            .iter()
            .filter(|(_, agent)| agent.presence == Presence::Gone);
        let mut gone: Vec<_> = gone
            .map(|(key, agent)| (agent.fact.last_seen_unix_ms, key.clone()))
            .collect();
        gone.sort();
        for (_, key) in gone.iter().take(gone.len().saturating_sub(GONE_AGENTS_MAX)) {
            self.agents.remove(key);
        }
        let gone = self
            .dataplanes
            .values()
            .filter(|plane| plane.link.is_none());
        let mut gone: Vec<_> = gone
            .map(|plane| (plane.gone_unix_ms, plane.id.clone()))
            .collect();
        gone.sort();
        for (_, id) in gone
            .iter()
            .take(gone.len().saturating_sub(GONE_DATAPLANES_MAX))
        {
            self.dataplanes.remove(id);
        }
    }
}

impl Agent {
    /// Whether it came with a token and has a control stream, over which another can travel.
    #[must_use]
    pub fn can_rotate(&self) -> bool {
        !self.fact.token_id.is_empty() && self.fact.protocol.starts_with("culvert/1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_proto::id::Epoch;
    use culvert_proto::update::RotatedFact;

    fn session(cluster: &str, instance: u8, protocol: &str) -> SessionFact {
        let id = cluster.parse().unwrap();
        SessionFact {
            protocol: protocol.into(),
            token_id: "t".into(),
            last_seen_unix_ms: 1_000,
            ..SessionFact::new(id, InstanceId([instance; 16]), Epoch(u64::from(instance)))
        }
    }

    fn report(dataplane: &str, sessions: Vec<SessionFact>) -> Report {
        Report {
            dataplane_id: dataplane.into(),
            sessions,
            ..Report::default()
        }
    }

    fn presence(fleet: &Fleet) -> Vec<Presence> {
        fleet.agents().map(|agent| agent.presence).collect()
    }

    #[test]
    fn an_agent_comes_becomes_unknown_with_its_link_and_leaves() {
        let mut fleet = Fleet::default();
        fleet.opened(LinkId(1), "unix pid 1");
        fleet.report(
            LinkId(1),
            report("dp", vec![session("a", 1, "culvert/1")]),
            1_000,
        );
        assert_eq!(presence(&fleet), [Presence::Connected]);
        fleet.closed(LinkId(1), 1_500);
        assert_eq!(presence(&fleet), [Presence::Unknown]);
        fleet.opened(LinkId(2), "unix pid 1");
        fleet.report(LinkId(2), report("dp", vec![]), 2_000);
        assert_eq!(presence(&fleet), [Presence::Gone]);
        assert_eq!(fleet.dataplanes().count(), 1);
        let id: ClusterId = "a".parse().unwrap();
        assert_eq!(fleet.last_connected(&id), Some(1_000));
        assert_eq!(fleet.last_used(&id, "t"), Some(1_000));
        assert_eq!(
            (fleet.take_touched().len(), fleet.take_touched().len()),
            (1, 0)
        );
        fleet.closed(LinkId(2), 2_500 + GONE_MS_MAX);
        assert_eq!(presence(&fleet), []);
    }

    #[test]
    fn the_end_of_an_old_link_leaves_the_newer_one_alone() {
        let mut fleet = Fleet::default();
        for link in [LinkId(1), LinkId(2)] {
            fleet.opened(link, "peer");
            fleet.report(
                link,
                report("dp", vec![session("a", 1, "culvert/1")]),
                1_000,
            );
        }
        fleet.closed(LinkId(1), 1_500);
        assert_eq!(presence(&fleet), [Presence::Connected]);
        assert_eq!(fleet.dataplanes().next().unwrap().link, Some(LinkId(2)));
    }

    #[test]
    fn a_token_is_delivered_once_every_able_agent_stored_it() {
        let mut fleet = Fleet::default();
        let (id, digest): (ClusterId, _) = ("a".parse().unwrap(), Digest([9; 32]));
        let stored = |instance: u8| RotatedFact {
            cluster: "a".parse().unwrap(),
            instance: InstanceId([instance; 16]),
            digest: Digest([9; 32]),
        };
        let sessions = || {
            let agents = [(1, "culvert/1"), (2, "culvert/1+websocket"), (3, "radar")];
            agents
                .map(|(n, protocol)| session("a", n, protocol))
                .to_vec()
        };
        fleet.opened(LinkId(1), "peer");
        fleet.report(LinkId(1), report("dp", sessions()), 1_000);
        assert!(!fleet.is_delivered(&id, &digest));
        for (instance, delivered) in [(1, false), (2, true)] {
            let rotated = vec![stored(instance)];
            fleet.report(
                LinkId(1),
                Report {
                    rotated,
                    ..report("dp", sessions())
                },
                1_000,
            );
            assert_eq!(fleet.is_delivered(&id, &digest), delivered);
        }
        fleet.delivery_over(&id);
        assert!(!fleet.is_delivered(&id, &digest));
        assert_eq!(fleet.highest_epoch(&id), 3);
    }
}
