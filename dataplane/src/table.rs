//! What this data plane knows about clusters: built whole, swapped whole, read
//! without a lock.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use culvert_identity::Policy;
use culvert_proto::answer::BodyKind;
use culvert_proto::channel::Form;
use culvert_proto::close::CloseReason;
use culvert_proto::head::{RequestRules, RouteKind as Behind};
use culvert_proto::id::{ClusterId, Epoch, Generation};
use culvert_proto::limits::TARGETS_MAX;
use culvert_proto::token::{IndexError, TokenIndex};
use culvert_proto::update::{ClusterState, EVERY_SERVICE, RouteKind, State, TargetKind};

use crate::ingress::Refusal;
use crate::metrics::{ClusterMetrics, Metrics};
use crate::pacing::{Limiter, limiter, take};
use crate::people::People;
use crate::routes::Routes;

/// Where a table came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nothing yet: everything is refused.
    None,
    /// Control, over its link.
    Control,
    /// The signed copy on disk.
    Disk,
    /// A clusters file.
    File,
}

impl Source {
    /// The word in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Control => "control",
            Self::Disk => "disk",
            Self::File => "file",
        }
    }
}

/// Limits of clusters that name none of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Requests at once.
    pub requests_max: u32,
    /// Requests a second.
    pub rate: Option<NonZeroU32>,
    /// Streams at once for each session.
    pub streams_max: u32,
}

/// One generation.
pub struct Table {
    /// Its number.
    pub generation: Generation,
    /// Where it came from.
    pub source: Source,
    clusters: HashMap<ClusterId, Arc<Cluster>>,
    defaults: Option<Defaults>,
    /// Ways in beside HTTP.
    pub routes: Routes,
    /// Whose token a digest is.
    pub tokens: Arc<TokenIndex>,
    /// How people are known; `None` where nobody signs in.
    pub people: Option<People>,
    /// Whose state it is.
    pub hub_id: Arc<str>,
    /// CAs (DER) whose agents are let in by certificate.
    pub agent_cas: Vec<Bytes>,
}

/// What is other in a generation than in the one before it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Clusters that are new, or described otherwise.
    pub changed: HashSet<ClusterId>,
    /// Clusters that are there no more.
    pub gone: HashSet<ClusterId>,
}

/// One cluster as this generation describes it.
pub struct Cluster {
    /// What control said.
    pub state: Arc<ClusterState>,
    /// Its instruments.
    pub metrics: Arc<ClusterMetrics>,
    /// Streams at once for each session.
    pub streams_max: u32,
    /// Which people may enter, and as whom.
    pub access: Arc<Policy>,
    live: Arc<Live>,
    requests_max: u32,
    rate: Option<(NonZeroU32, Arc<Limiter>)>,
}

/// What outlives a generation.
struct Live {
    requests: AtomicU32,
    number: u32,
}

impl Default for Live {
    fn default() -> Self {
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        Self {
            requests: AtomicU32::new(0),
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// A request's place in its cluster's limit.
pub struct RequestSlot(Arc<Live>);

impl Drop for RequestSlot {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Table {
    fn default() -> Self {
        Self {
            generation: Generation(0),
            source: Source::None,
            clusters: HashMap::new(),
            defaults: None,
            routes: Routes::default(),
            tokens: Arc::default(),
            people: None,
            hub_id: Arc::default(),
            agent_cas: Vec::new(),
        }
    }
}

impl Table {
    /// Builds a generation, and tells what is other than `before`. Counts and instruments of known
    /// clusters go on, and what is the same is shared: a step costs what it changes and one walk over
    /// the rest.
    ///
    /// # Errors
    /// When two clusters share a token.
    pub fn build(
        state: &State,
        source: Source,
        before: &Table,
        defaults: Defaults,
        metrics: &Metrics,
    ) -> Result<(Self, Changes), IndexError> {
        let mut table = Self {
            generation: state.generation,
            source,
            people: People::of(state),
            hub_id: state.hub_id.clone(),
            agent_cas: state.settings.agent_cas.clone(),
            clusters: HashMap::with_capacity(state.clusters.len()),
            defaults: Some(defaults),
            ..Self::default()
        };
        let mut changes = Changes::default();
        let mut stayed = 0;
        for state in state.clusters.values() {
            let known = before.clusters.get(state.id.as_str());
            stayed += usize::from(known.is_some());
            let same = known.filter(|known| {
                Arc::ptr_eq(&known.state, state) && before.defaults == table.defaults
            });
            let cluster = same.cloned().unwrap_or_else(|| {
                let known = known.map(Arc::as_ref);
                if known.is_none_or(|known| known.state != *state) {
                    changes.changed.insert(state.id.clone());
                }
                Arc::new(Cluster::new(state.clone(), known, defaults, metrics))
            });
            table.clusters.insert(state.id.clone(), cluster);
        }
        if stayed < before.clusters.len() {
            let gone = before
                .clusters
                .keys()
                .filter(|id| !table.clusters.contains_key(*id));
            changes.gone = gone.cloned().collect();
        }
        table.tokens = match changes.is_empty() {
            true => before.tokens.clone(),
            false => {
                let now = changes
                    .changed
                    .iter()
                    .filter_map(|id| table.clusters.get(id));
                let entries = now.flat_map(|cluster| cluster.state.token_entries());
                Arc::new(before.tokens.with(|id| changes.has(id), entries)?)
            }
        };
        table.routes = Routes::build(table.clusters.values().map(|cluster| &cluster.state));
        Ok((table, changes))
    }

    /// The cluster called `id`.
    pub fn get(&self, id: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(id)
    }

    /// The epoch below which sessions of `cluster` are dead; `None` when the
    /// cluster is unknown or disabled and none may live.
    pub fn floor(&self, cluster: &str) -> Option<Epoch> {
        let cluster = self.get(cluster)?;
        cluster.state.enabled.then_some(cluster.state.epoch_floor)
    }
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.gone.is_empty()
    }

    fn has(&self, id: &ClusterId) -> bool {
        self.changed.contains(id) || self.gone.contains(id)
    }
}

impl Cluster {
    fn new(
        state: Arc<ClusterState>,
        before: Option<&Cluster>,
        defaults: Defaults,
        metrics: &Metrics,
    ) -> Self {
        let rate = NonZeroU32::new(state.rate_per_second).or(defaults.rate);
        let kept = before.and_then(|before| before.rate.clone());
        let rate = match (rate, kept) {
            (Some(rate), Some(kept)) if kept.0 == rate => Some(kept),
            (Some(rate), _) => Some((rate, Arc::new(limiter(rate)))),
            (None, _) => None,
        };
        let same_access = before.filter(|before| before.state.access == state.access);
        Self {
            access: same_access.map_or_else(
                || Arc::new(Policy::from(&state.access)),
                |before| before.access.clone(),
            ),
            metrics: before.map_or_else(
                || metrics.cluster(state.id.as_str()),
                |before| before.metrics.clone(),
            ),
            live: before.map_or_else(Arc::default, |before| before.live.clone()),
            streams_max: or_default(state.streams_max, defaults.streams_max),
            requests_max: or_default(state.requests_max, defaults.requests_max),
            rate,
            state,
        }
    }

    /// Takes a place for one request.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn admit(&self) -> Result<RequestSlot, Refusal> {
        let before = self.live.requests.fetch_add(1, Ordering::Relaxed);
        let slot = RequestSlot(self.live.clone());
        if before >= self.requests_max {
            let detail = format!(
                "The cluster's limit is {} requests at once.",
                self.requests_max
            );
            return Err(Refusal::new(CloseReason::TooManyRequests, detail));
        }
        if let Some((rate, limiter)) = &self.rate {
            take(limiter).map_err(|wait| {
                let detail = format!("The cluster's rate is {rate} requests/s.");
                Refusal::new(CloseReason::RateLimited, detail).retry_after(wait)
            })?;
        }
        Ok(slot)
    }

    /// A number that stays its own as long as the cluster is known.
    pub fn number(&self) -> u32 {
        self.live.number
    }

    /// Names its agents may be asked for; `announced` are those that an agent
    /// says it has, which a token for every service reaches.
    pub fn targets(&self, announced: &[String]) -> Vec<Arc<str>> {
        let state = &self.state;
        let routed = state.routes.iter().map(|route| route.service.shared());
        let granted = state
            .personal_tokens
            .iter()
            .flat_map(|token| &token.services);
        let (every, named): (Vec<_>, Vec<_>) = granted.partition(|name| &***name == EVERY_SERVICE);
        let announced = announced.iter().filter(|_| !every.is_empty());
        let mut targets: Vec<Arc<str>> = state.target.addr.iter().cloned().collect();
        let names: BTreeSet<Arc<str>> = routed
            .chain(named.into_iter().cloned())
            .chain(announced.map(|name| Arc::from(name.as_str())))
            .collect();
        targets.extend(names);
        targets.truncate(TARGETS_MAX);
        targets
    }

    /// The forms of data channels that its routes need; `form` decides for a
    /// sealed one or not.
    pub fn forms(&self, form: impl Fn(bool) -> Option<Form>) -> Vec<Form> {
        let kinds = self.state.routes.iter().map(|route| &route.kind);
        let sealed = kinds.map(|kind| matches!(kind, RouteKind::Sealed { .. }));
        sealed.filter_map(form).collect()
    }

    /// What stands behind the cluster's agent.
    pub fn kind(&self) -> Behind {
        match self.state.target.kind {
            TargetKind::Kube => Behind::Kube,
            TargetKind::Http => Behind::Http,
        }
    }

    /// Which request fields pass.
    pub fn rules(&self) -> RequestRules {
        RequestRules {
            kind: self.kind(),
            allow_impersonation: self.state.allow_impersonation,
            pass_cookies: false,
        }
    }

    /// The form of error bodies its clients understand.
    pub fn body_kind(&self) -> BodyKind {
        match self.kind() {
            Behind::Kube => BodyKind::KubernetesStatus,
            Behind::Http => BodyKind::Problem,
        }
    }

    /// The `Host` of the service.
    pub fn host(&self) -> &str {
        let addr = self.state.target.addr.as_deref();
        addr.unwrap_or(self.state.id.as_str())
    }
}

/// 0 stands for "no limit of its own".
fn or_default(own: u32, default: u32) -> u32 {
    if own == 0 { default } else { own }
}
