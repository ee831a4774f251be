//! From a decision to its record and its publication.

use std::sync::Arc;
use std::time::Instant;

use culvert_proto::id::{ClusterId, Generation};
use culvert_proto::token::TokenIndex;
use culvert_proto::update::{Change, Update};

use super::{Clusters, Hub, HubError};
use crate::audit::Entry;
use crate::cluster::Cluster;
use crate::store::StoreError;

/// Held by the one decision that is being made.
pub(super) struct Writer {
    generation: Generation,
    /// A change whose recording was not seen to its end: it may or may not be on disk.
    uncertain: Option<Step>,
}

/// The change from one generation to the next.
#[derive(Clone)]
pub(super) enum Step {
    Put(Arc<Cluster>),
    Remove(ClusterId),
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
    /// The right to decide, once memory and disk are known to agree.
    pub(super) async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, Writer>, HubError> {
        let mut writer = self.writer.lock().await;
        if let Some(step) = writer.uncertain.clone() {
            let on_disk = self.store.generation().await?;
            if on_disk.0 == writer.generation.0 + 1 {
                self.publish(&mut writer, step);
            }
            writer.uncertain = None;
        }
        Ok(writer)
    }

    /// Records the step and the row that says who made it, as one, and publishes it.
    pub(super) async fn commit(
        &self,
        writer: &mut Writer,
        step: Step,
        entry: Option<Entry>,
    ) -> Result<(), HubError> {
        let next = Generation(writer.generation.0 + 1);
        let started = Instant::now();
        // A caller that goes away drops this future at the wait: the next turn asks the disk.
        writer.uncertain = Some(step.clone());
        let (operation, recorded) = match &step {
            Step::Put(cluster) => ("save", self.store.save(cluster, next, entry.as_ref()).await),
            Step::Remove(id) => ("remove", self.store.remove(id, next, entry.as_ref()).await),
        };
        self.metrics
            .store(operation, recorded.is_ok(), started.elapsed());
        if !matches!(recorded, Err(StoreError::Slow { .. })) {
            writer.uncertain = None;
        }
        recorded?;
        if let Some(entry) = &entry {
            self.metrics.audited(entry);
        }
        self.publish(writer, step);
        Ok(())
    }

    fn publish(&self, writer: &mut Writer, step: Step) {
        let now_ms = self.now_ms();
        let generation = Generation(writer.generation.0 + 1);
        let mut clusters = Clusters::clone(&self.clusters.load());
        let change = match step {
            Step::Put(cluster) => {
                let state = Arc::new(cluster.to_state());
                clusters.insert(cluster.id.clone(), cluster);
                Change::Upsert(state)
            }
            Step::Remove(id) => {
                clusters.remove(&id);
                Change::Remove(id)
            }
        };
        let update = Update {
            generation,
            issued_unix_ms: now_ms,
            changes: vec![change],
        };
        self.feed
            .publish(&update)
            .expect("one writer raises the generation by one");
        self.metrics.generation.set(gauge(generation.0));
        self.metrics.clusters.set(gauge(clusters.len() as u64));
        self.tokens.store(Arc::new(index(&clusters)));
        self.clusters.store(Arc::new(clusters));
        writer.generation = generation;
    }
}

pub(super) fn index(clusters: &Clusters) -> TokenIndex {
    let entries = clusters
        .values()
        .flat_map(|cluster| cluster.token_entries());
    TokenIndex::build(entries).expect("the store holds a digest once")
}

pub(super) fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
