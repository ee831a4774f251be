//! From a decision to its record and its publication.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_proto::id::Generation;
use culvert_proto::token::TokenIndex;
use culvert_proto::update::{Change, Update};
use tokio::sync::MutexGuard;
use tokio::time::sleep;

use super::enrol::{published, with_cas};
use super::{Clusters, Hub, HubError};
use crate::audit::Entry;
use crate::store::{Claim, News, Step, StoreError};

/// What other processes recorded is looked for this often, heard of or not.
const LOOK: Duration = Duration::from_secs(5);

/// Held by the one decision that is being made.
pub(super) struct Writer {
    generation: Generation,
    /// A change whose recording was not seen to its end: it may or may not be on record.
    uncertain: Option<Vec<Step>>,
}

/// The right to decide; other processes wait for it too.
pub(super) struct Held<'a> {
    writer: MutexGuard<'a, Writer>,
    claim: Option<Claim>,
}

impl Writer {
    pub(super) fn at(generation: Generation) -> Self {
        Self {
            generation,
            uncertain: None,
        }
    }
}

impl Hub {
    /// Which kind of store it has: `sqlite` or `postgres`.
    #[must_use]
    pub fn store_kind(&self) -> &'static str {
        self.store.kind()
    }

    /// Whether other processes may record in the same store.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    /// The right to decide, once memory and store are known to agree.
    pub(super) async fn turn(&self) -> Result<Held<'_>, HubError> {
        let mut writer = self.writer.lock().await;
        let (claim, news) = self.store.claim(writer.generation).await?;
        match news {
            News::Alone => {
                if let Some(steps) = writer.uncertain.clone() {
                    let recorded = self.store.generation().await?;
                    if recorded.0 == writer.generation.0 + 1 {
                        let people = self.people().await?;
                        self.publish(&mut writer, recorded, steps, people);
                    }
                }
            }
            News::Changed(newest, steps) => self.follow(&mut writer, newest, steps).await?,
            News::All(newest, clusters) => {
                let held = self.clusters.load();
                let gone = held.keys().filter(|id| {
                    let found = clusters.binary_search_by(|cluster| cluster.id.cmp(id));
                    found.is_err()
                });
                let gone: Vec<Step> = gone.cloned().map(Step::Remove).collect();
                let put = clusters.into_iter().map(|it| Step::Put(Arc::new(it)));
                let steps = gone.into_iter().chain(put).collect();
                self.follow(&mut writer, newest, steps).await?;
            }
        }
        writer.uncertain = None;
        Ok(Held {
            writer,
            claim: Some(claim),
        })
    }

    /// Follows what other processes record in the same store. Runs until dropped.
    pub async fn follow_store(&self) {
        let told = async {
            loop {
                let newest = self.store.changed().await;
                if newest.is_none_or(|newest| newest > self.generation()) {
                    self.look().await;
                }
            }
        };
        let by_itself = async {
            loop {
                sleep(LOOK).await;
                self.look().await;
            }
        };
        let ((), ()) = tokio::join!(told, by_itself);
    }

    async fn look(&self) {
        if let Err(error) = self.turn().await {
            tracing::warn!(%error, "what other control processes recorded cannot be read; trying again");
        }
    }

    /// Records the steps and the rows that say who made them as one, and publishes them.
    pub(super) async fn commit(
        &self,
        held: &mut Held<'_>,
        steps: Vec<Step>,
        entries: Vec<Entry>,
    ) -> Result<(), HubError> {
        let claim = match held.claim.take() {
            Some(claim) => claim,
            None => self.claim_again(held.writer.generation).await?,
        };
        let writer = &mut *held.writer;
        let next = Generation(writer.generation.0 + 1);
        let started = Instant::now();
        // A caller that goes away drops this future at the wait: the next turn asks the store.
        writer.uncertain = Some(steps.clone());
        let recorded = self.store.record(claim, &steps, next, &entries).await;
        self.metrics
            .store("record", recorded.is_ok(), started.elapsed());
        if !matches!(recorded, Err(StoreError::Slow { .. })) {
            writer.uncertain = None;
        }
        recorded?;
        for entry in &entries {
            self.audited(entry);
        }
        self.publish(writer, next, steps, Vec::new());
        Ok(())
    }

    /// Records a generation that changes no cluster, and gives every data plane all of it.
    pub(super) async fn commit_whole(
        &self,
        held: &mut Held<'_>,
        steps: Vec<Step>,
        entries: Vec<Entry>,
    ) -> Result<(), HubError> {
        let claim = match held.claim.take() {
            Some(claim) => claim,
            None => self.claim_again(held.writer.generation).await?,
        };
        let mut people = self.people().await?;
        let cas = published(self.store.agent_cas().await?, &steps);
        with_cas(&mut people, &cas);
        let next = Generation(held.writer.generation.0 + 1);
        held.writer.uncertain = Some(steps.clone());
        let recorded = self.store.record(claim, &steps, next, &entries).await;
        if !matches!(recorded, Err(StoreError::Slow { .. })) {
            held.writer.uncertain = None;
        }
        recorded?;
        for entry in &entries {
            self.audited(entry);
        }
        let update = Update {
            generation: next,
            issued_unix_ms: self.now_ms(),
            changes: people,
        };
        let published = self.feed.leap(&update);
        published.expect("whoever holds the turn raises the generation");
        self.metrics.generation.set(gauge(next.0));
        held.writer.generation = next;
        Ok(())
    }

    /// For a further change of the same decision: nobody may have come between.
    async fn claim_again(&self, held: Generation) -> Result<Claim, HubError> {
        match self.store.claim(held).await? {
            (claim, News::Alone) => Ok(claim),
            (claim, News::Changed(newest, _)) if newest == held => Ok(claim),
            _ => Err(HubError::Overtaken),
        }
    }

    /// Takes over what other processes recorded. Keys are this process's own: data planes that
    /// came from another get them with the next generation.
    async fn follow(
        &self,
        writer: &mut Writer,
        newest: Generation,
        steps: Vec<Step>,
    ) -> Result<(), HubError> {
        if newest <= writer.generation {
            return Ok(());
        }
        let people = self.people().await?;
        for step in &steps {
            if let Step::Remove(id) = step {
                self.end_delivery(id);
                self.fleet.lock().remove(id);
            }
        }
        self.publish(writer, newest, steps, people);
        Ok(())
    }

    fn publish(
        &self,
        writer: &mut Writer,
        generation: Generation,
        steps: Vec<Step>,
        people: Vec<Change>,
    ) {
        let now_ms = self.now_ms();
        let mut clusters = Clusters::clone(&self.clusters.load());
        let mut touched = BTreeSet::new();
        let changes = steps.into_iter().filter_map(|step| match step {
            Step::Put(cluster) => {
                let state = Arc::new(cluster.to_state());
                touched.insert(cluster.id.clone());
                clusters.insert(cluster.id.clone(), cluster);
                Some(Change::Upsert(state))
            }
            Step::Remove(id) => {
                touched.insert(id.clone());
                clusters.remove(&id);
                Some(Change::Remove(id))
            }
            Step::End { subject, epoch } => Some(Change::End {
                subject: subject.into(),
                epoch,
            }),
            Step::Decide { .. } => None,
            // They stand in the settings, which `people` holds.
            Step::AgentCa(_) | Step::DropAgentCa(_) => None,
        });
        let changes = people.into_iter().chain(changes).collect();
        let update = Update {
            generation,
            issued_unix_ms: now_ms,
            changes,
        };
        let published = if generation.0 == writer.generation.0 + 1 {
            self.feed.publish(&update)
        } else {
            self.feed.leap(&update)
        };
        published.expect("whoever holds the turn raises the generation");
        self.metrics.generation.set(gauge(generation.0));
        self.metrics.clusters.set(gauge(clusters.len() as u64));
        if !touched.is_empty() {
            let now = touched.iter().filter_map(|id| clusters.get(id));
            let entries = now.flat_map(|cluster| cluster.token_entries());
            let tokens = self.tokens.load().with(|id| touched.contains(id), entries);
            self.tokens.store(Arc::new(tokens.expect(UNIQUE)));
        }
        self.clusters.store(Arc::new(clusters));
        writer.generation = generation;
    }
}

const UNIQUE: &str = "the store holds a digest once";

pub(super) fn index(clusters: &Clusters) -> TokenIndex {
    let entries = clusters
        .values()
        .flat_map(|cluster| cluster.token_entries());
    TokenIndex::build(entries).expect(UNIQUE)
}

pub(super) fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
