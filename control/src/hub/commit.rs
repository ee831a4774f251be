//! From a decision to its record and its publication.

use std::sync::Arc;
use std::time::Instant;

use culvert_proto::id::Generation;
use culvert_proto::token::TokenIndex;
use culvert_proto::update::{Change, Update};

use super::{Clusters, Hub, HubError};
use crate::audit::Entry;
use crate::store::{Step, StoreError};

/// Held by the one decision that is being made.
pub(super) struct Writer {
    generation: Generation,
    /// A change whose recording was not seen to its end: it may or may not be on disk.
    uncertain: Option<Vec<Step>>,
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
        if let Some(steps) = writer.uncertain.clone() {
            let on_disk = self.store.generation().await?;
            if on_disk.0 == writer.generation.0 + 1 {
                self.publish(&mut writer, steps);
            }
            writer.uncertain = None;
        }
        Ok(writer)
    }

    /// Records the steps and the rows that say who made them as one, and publishes them.
    pub(super) async fn commit(
        &self,
        writer: &mut Writer,
        steps: Vec<Step>,
        entries: Vec<Entry>,
    ) -> Result<(), HubError> {
        let next = Generation(writer.generation.0 + 1);
        let started = Instant::now();
        // A caller that goes away drops this future at the wait: the next turn asks the disk.
        writer.uncertain = Some(steps.clone());
        let recorded = self.store.record(&steps, next, &entries).await;
        self.metrics
            .store("record", recorded.is_ok(), started.elapsed());
        if !matches!(recorded, Err(StoreError::Slow { .. })) {
            writer.uncertain = None;
        }
        recorded?;
        for entry in &entries {
            self.metrics.audited(entry);
        }
        self.publish(writer, steps);
        Ok(())
    }

    fn publish(&self, writer: &mut Writer, steps: Vec<Step>) {
        let now_ms = self.now_ms();
        let generation = Generation(writer.generation.0 + 1);
        let mut clusters = Clusters::clone(&self.clusters.load());
        let changes = steps.into_iter().map(|step| match step {
            Step::Put(cluster) => {
                let state = Arc::new(cluster.to_state());
                clusters.insert(cluster.id.clone(), cluster);
                Change::Upsert(state)
            }
            Step::Remove(id) => {
                clusters.remove(&id);
                Change::Remove(id)
            }
        });
        let changes = changes.collect();
        let update = Update {
            generation,
            issued_unix_ms: now_ms,
            changes,
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
