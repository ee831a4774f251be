//! One decision at a time: decide, record, publish.
//!
//! The store is written first: what data planes see survives a crash. Reads
//! come from memory and never wait for a decision.

mod audit;
mod commit;
mod connect;
mod enrol;
mod error;
mod file;
mod identity;
mod in_use;
mod link;
mod personal;
mod routes;
mod upkeep;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arc_swap::ArcSwap;
use culvert_net::crypto::{DERIVED_BYTES, SigningKey};
use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::limits::CLUSTERS_MAX;
use culvert_proto::token::{Digest, TokenIndex, TokenText};
use culvert_proto::update::{Rotation, Settings, State};
use culvert_rpc::Feed;
use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, Notify};
use zeroize::Zeroizing;

use crate::audit::{Cause, Entry, Verb};
use crate::cluster::{Cluster, Spec};
use crate::enrol::Enrolment;
use crate::fleet::Fleet;
use crate::identity::Attempts;
use crate::metrics::Metrics;
use crate::registry;
use crate::registry::file::Listing;
use crate::store::{Loaded, Step, Store};
use crate::token;

pub use audit::{FOLLOWS_MAX, Follow};
use commit::{Writer, gauge, index};
pub use connect::Fetched;
pub use enrol::{MintedEnrol, RegisterError, Registered};
pub use error::HubError;
pub use personal::MintedPersonal;
pub use upkeep::DELIVERY_MS_MAX;

/// Longest overlap of a rotation and longest life that can be asked for: ten years.
pub const LIFE_MS_MAX: u64 = 10 * 366 * 86_400_000;

/// Registrations of agents in a minute, of one source (T24).
pub const REGISTRATIONS_MAX: u32 = 10;
/// Registrations of agents in a minute.
pub const REGISTRATIONS_ALL_MAX: u32 = 600;

/// Milliseconds since 1970.
pub type Clock = Box<dyn Fn() -> u64 + Send + Sync>;
/// Every cluster, by id.
pub type Clusters = BTreeMap<ClusterId, Arc<Cluster>>;

/// Control's state and the only way to change it.
pub struct Hub {
    id: String,
    store: Store,
    feed: Feed,
    fleet: Mutex<Fleet>,
    clusters: ArcSwap<Clusters>,
    /// What the registry file says.
    listing: ArcSwap<Listing>,
    /// Whose token is which.
    tokens: ArcSwap<TokenIndex>,
    /// What data planes are told beside clusters.
    settings: ArcSwap<Settings>,
    writer: Turn<Writer>,
    acknowledged: Notify,
    /// A data plane reported.
    followed: Notify,
    /// Rows of refused changes that the store could not take yet.
    waiting: Mutex<VecDeque<Entry>>,
    followers: audit::Followers,
    metrics: Arc<Metrics>,
    clock: Clock,
    started_unix_ms: u64,
    /// How agents are enrolled.
    enrolment: ArcSwap<Enrolment>,
    /// Seals the keys of agent CAs.
    seal: Zeroizing<[u8; DERIVED_BYTES]>,
    /// Registrations of this minute.
    pub registrations: Attempts,
}

/// A token that was just minted; this is the only time its text is seen.
pub struct Minted {
    /// The text.
    pub text: TokenText,
    /// The part that may be shown.
    pub id: String,
    /// The cluster with it.
    pub cluster: Arc<Cluster>,
}

impl Hub {
    /// A hub over an open store.
    #[must_use]
    pub fn new(
        store: Store,
        loaded: Loaded,
        key: SigningKey,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let now_ms = clock();
        metrics.generation.set(gauge(loaded.generation.0));
        metrics.clusters.set(gauge(loaded.clusters.len() as u64));
        let clusters: Clusters = loaded
            .clusters
            .into_iter()
            .map(|c| (c.id.clone(), Arc::new(c)))
            .collect();
        let seal = key.derive(enrol::SEAL_INFO);
        let states = clusters.iter();
        let state = State {
            generation: loaded.generation,
            hub_id: loaded.hub_id.as_str().into(),
            issued_unix_ms: now_ms,
            clusters: states
                .map(|(id, c)| (id.clone(), Arc::new(c.to_state())))
                .collect(),
            ..State::default()
        };
        Self {
            id: loaded.hub_id,
            store,
            feed: Feed::new(key, state),
            fleet: Mutex::default(),
            listing: ArcSwap::default(),
            settings: ArcSwap::default(),
            tokens: ArcSwap::from_pointee(index(&clusters)),
            clusters: ArcSwap::from_pointee(clusters),
            writer: Turn::new(Writer::at(loaded.generation)),
            acknowledged: Notify::new(),
            followed: Notify::new(),
            waiting: Mutex::default(),
            followers: audit::Followers::default(),
            metrics,
            clock,
            started_unix_ms: now_ms,
            enrolment: ArcSwap::default(),
            seal,
            registrations: Attempts::new(REGISTRATIONS_MAX, REGISTRATIONS_ALL_MAX),
        }
    }

    /// Names this hub.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// When this process started, milliseconds since 1970.
    #[must_use]
    pub fn started_unix_ms(&self) -> u64 {
        self.started_unix_ms
    }

    /// The time, milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        (self.clock)()
    }

    /// The generation published last.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.feed.generation()
    }

    /// Every cluster as it is now.
    #[must_use]
    pub fn clusters(&self) -> Arc<Clusters> {
        self.clusters.load_full()
    }

    /// One cluster.
    ///
    /// # Errors
    /// [`HubError::NoCluster`].
    pub fn cluster(&self, id: &ClusterId) -> Result<Arc<Cluster>, HubError> {
        let found = self.clusters.load().get(id).cloned();
        found.ok_or_else(|| HubError::NoCluster(id.clone()))
    }

    /// The cluster that a token opens now. Unknown and wrong tokens cost the same
    /// search as right ones, however many there are.
    #[must_use]
    pub fn owner(&self, presented: &Digest) -> Option<Arc<Cluster>> {
        let tokens = self.tokens.load();
        let entry = tokens.find(presented, self.now_ms()).ok()?;
        self.clusters.load().get(&entry.cluster).cloned()
    }

    /// Reads the facts about data planes and agents.
    pub fn fleet<T>(&self, read: impl FnOnce(&Fleet) -> T) -> T {
        read(&self.fleet.lock())
    }

    /// Registers a cluster, without a token.
    ///
    /// # Errors
    /// When it exists, breaks a rule, or cannot be recorded.
    pub async fn create(
        &self,
        cause: &Cause,
        id: ClusterId,
        spec: Spec,
    ) -> Result<Arc<Cluster>, HubError> {
        let mut writer = self.turn().await?;
        self.room_for(&id)?;
        let entry = cause.did(Verb::ClusterCreate, &id, id.as_str(), self.now_ms());
        let cluster = Arc::new(registry::create(id, spec, self.now_ms())?);
        self.commit(&mut writer, vec![Step::Put(cluster.clone())], vec![entry])
            .await?;
        drop(writer);
        tracing::info!(cluster = %cluster.id, "cluster registered");
        self.in_use().await;
        Ok(cluster)
    }

    /// Replaces what an operator may change.
    ///
    /// # Errors
    /// When the cluster is unknown, breaks a rule, or cannot be recorded.
    pub async fn update(
        &self,
        cause: &Cause,
        id: &ClusterId,
        change: impl FnOnce(&mut Spec),
    ) -> Result<Arc<Cluster>, HubError> {
        let entry = cause.did(Verb::ClusterUpdate, id, id.as_str(), self.now_ms());
        let cluster = self
            .decide(id, Some(entry), |cluster, now_ms| {
                let mut spec = cluster.spec.clone();
                change(&mut spec);
                let contradicted = self.listing.load().contradicted(id, &spec);
                if !contradicted.is_empty() {
                    return Err(self.owned_by_file(id, &contradicted.join(", ")));
                }
                Ok(registry::update(cluster, spec, now_ms)?)
            })
            .await?;
        tracing::info!(cluster = %id, "cluster changed");
        self.in_use().await;
        Ok(cluster)
    }

    /// Removes a cluster; its sessions end.
    ///
    /// # Errors
    /// When the cluster is unknown or the removal cannot be recorded.
    pub async fn remove(&self, cause: &Cause, id: &ClusterId) -> Result<(), HubError> {
        let mut writer = self.turn().await?;
        self.cluster(id)?;
        if self.is_listed(id) {
            return Err(self.owned_by_file(id, "the cluster"));
        }
        let entry = cause.did(Verb::ClusterDelete, id, id.as_str(), self.now_ms());
        self.commit(&mut writer, vec![Step::Remove(id.clone())], vec![entry])
            .await?;
        self.feed.withdraw(id);
        self.fleet.lock().remove(id);
        drop(writer);
        tracing::info!(cluster = %id, "cluster removed");
        self.in_use().await;
        Ok(())
    }

    /// Mints a further token that lives for `life_ms`, or without end.
    ///
    /// # Errors
    /// When the cluster is unknown, has too many tokens, or the token cannot be recorded.
    pub async fn mint(
        &self,
        cause: &Cause,
        id: &ClusterId,
        life_ms: Option<u64>,
    ) -> Result<Minted, HubError> {
        let minted = self
            .with_new((cause, Verb::TokenMint), id, |cluster, new, now_ms| {
                let life_ms = life_ms.map(|life| life.min(LIFE_MS_MAX));
                Ok(registry::add_token(cluster, new, life_ms, now_ms)?)
            })
            .await?;
        tracing::info!(cluster = %id, token = minted.id, "token minted");
        self.in_use().await;
        Ok(minted)
    }

    /// Mints a token in place of the others, which live for `overlap_ms` more.
    ///
    /// # Errors
    /// As [`Hub::mint`].
    pub async fn rotate(
        &self,
        cause: &Cause,
        id: &ClusterId,
        overlap_ms: u64,
    ) -> Result<Minted, HubError> {
        let minted = self
            .with_new((cause, Verb::TokenRotate), id, |cluster, new, now_ms| {
                self.free_tokens(cluster)?;
                let overlap_ms = overlap_ms.min(LIFE_MS_MAX);
                Ok(registry::rotate(cluster, new, overlap_ms, now_ms)?)
            })
            .await?;
        self.end_delivery(id);
        tracing::info!(cluster = %id, token = minted.id, overlap_ms, "token rotated");
        self.in_use().await;
        Ok(minted)
    }

    /// Mints a token and offers it to the cluster's agents through their tunnels.
    /// The overlap of the others starts once all of them have stored it.
    ///
    /// # Errors
    /// As [`Hub::mint`], and when no connected agent can take a token that way.
    pub async fn rotate_through_tunnel(
        &self,
        cause: &Cause,
        id: &ClusterId,
        overlap_ms: u64,
    ) -> Result<Arc<Cluster>, HubError> {
        if !self
            .fleet
            .lock()
            .connected(id)
            .any(|agent| agent.can_rotate())
        {
            self.cluster(id)?;
            return Err(HubError::NobodyToDeliverTo(id.clone()));
        }
        let minted = self
            .with_new((cause, Verb::TokenRotate), id, |cluster, new, now_ms| {
                self.free_tokens(cluster)?;
                let overlap_ms = overlap_ms.min(LIFE_MS_MAX);
                Ok(registry::rotate_delivered(
                    cluster, new, overlap_ms, now_ms,
                )?)
            })
            .await?;
        self.fleet.lock().delivery_over(id);
        let rotation = Rotation {
            cluster: id.clone(),
            token_id: minted.id.as_str().into(),
            not_before_unix_s: self.now_ms() / 1000,
            token: minted.text,
        };
        self.feed
            .offer(&rotation)
            .map_err(|_| HubError::TooManyDeliveries)?;
        tracing::info!(cluster = %id, token = minted.id, "token offered through the tunnel");
        Ok(minted.cluster)
    }

    /// Removes one token; sessions that came with it end.
    ///
    /// # Errors
    /// When the cluster or the token is unknown, or the removal cannot be recorded.
    pub async fn remove_token(
        &self,
        cause: &Cause,
        id: &ClusterId,
        token_id: &str,
    ) -> Result<Arc<Cluster>, HubError> {
        let entry = cause.did(Verb::TokenRevoke, id, token_id, self.now_ms());
        let cluster = self
            .decide(id, Some(entry), |cluster, now| {
                self.free_token(id, token_id)?;
                Ok(registry::remove_token(cluster, token_id, now)?)
            })
            .await?;
        if !cluster
            .tokens
            .iter()
            .any(|token| token.pending_overlap_ms.is_some())
        {
            self.end_delivery(id);
        }
        tracing::info!(cluster = %id, token = token_id, "token removed");
        self.in_use().await;
        Ok(cluster)
    }

    /// Takes every token of a cluster and cuts its sessions.
    ///
    /// # Errors
    /// When the cluster is unknown or the revocation cannot be recorded.
    pub async fn revoke(&self, cause: &Cause, id: &ClusterId) -> Result<Arc<Cluster>, HubError> {
        let highest = self.fleet.lock().highest_epoch(id);
        let entry = cause.did(Verb::TokenRevoke, id, "", self.now_ms());
        let cluster = self
            .decide(id, Some(entry), |cluster, now| {
                self.free_tokens(cluster)?;
                Ok(registry::revoke(cluster, highest, now))
            })
            .await?;
        self.end_delivery(id);
        tracing::info!(cluster = %id, epoch_floor = cluster.epoch_floor, "cluster revoked");
        self.in_use().await;
        Ok(cluster)
    }

    /// Ends the store's life in order.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// Whether a cluster of this id can be registered.
    fn room_for(&self, id: &ClusterId) -> Result<(), HubError> {
        let clusters = self.clusters.load();
        match clusters.contains_key(id) {
            true => Err(HubError::Exists(id.clone())),
            false if clusters.len() >= CLUSTERS_MAX => Err(HubError::TooManyClusters),
            false => Ok(()),
        }
    }

    fn end_delivery(&self, id: &ClusterId) {
        self.feed.withdraw(id);
        self.fleet.lock().delivery_over(id);
    }

    async fn with_new(
        &self,
        (cause, verb): (&Cause, Verb),
        id: &ClusterId,
        decide: impl FnOnce(&Cluster, registry::NewToken, u64) -> Result<Cluster, HubError>,
    ) -> Result<Minted, HubError> {
        let (text, new) = token::mint();
        let token_id = new.id.clone();
        let entry = cause.did(verb, id, &token_id, self.now_ms());
        let cluster = self
            .decide(id, Some(entry), |cluster, now_ms| {
                decide(cluster, new, now_ms)
            })
            .await?;
        Ok(Minted {
            text,
            id: token_id,
            cluster,
        })
    }

    async fn decide(
        &self,
        id: &ClusterId,
        entry: Option<Entry>,
        decide: impl FnOnce(&Cluster, u64) -> Result<Cluster, HubError>,
    ) -> Result<Arc<Cluster>, HubError> {
        let mut writer = self.turn().await?;
        let cluster = self.seen(&*self.cluster(id)?);
        let next = Arc::new(decide(&cluster, self.now_ms())?);
        self.commit(
            &mut writer,
            vec![Step::Put(next.clone())],
            entry.into_iter().collect(),
        )
        .await?;
        Ok(next)
    }

    /// The cluster with what the fleet saw since it was recorded.
    fn seen(&self, cluster: &Cluster) -> Cluster {
        let mut cluster = cluster.clone();
        let fleet = self.fleet.lock();
        for token in &mut cluster.tokens {
            token.last_used_unix_ms = fleet
                .last_used(&cluster.id, &token.id)
                .or(token.last_used_unix_ms);
        }
        cluster.last_connected_unix_ms = fleet
            .last_connected(&cluster.id)
            .or(cluster.last_connected_unix_ms);
        cluster
    }
}
