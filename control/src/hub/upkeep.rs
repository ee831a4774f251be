//! What happens with time: tokens expire, deliveries finish, uses are recorded.

use std::time::Duration;

use culvert_proto::id::ClusterId;
use tokio::time::{Instant, sleep_until};

use super::{Hub, HubError};
use crate::cluster::Cluster;
use crate::registry;

/// A delivery that not every agent acknowledged in this time is given up.
pub const DELIVERY_MS_MAX: u64 = 24 * 3_600_000;
const ROUND: Duration = Duration::from_secs(1);
/// Rest after a round whose decisions could not be recorded.
const FAILED_ROUND: Duration = Duration::from_secs(30);
/// Uses of tokens are recorded this often.
const RECORD: Duration = Duration::from_secs(30);

impl Hub {
    /// Keeps the state true to the clock and to what agents acknowledge. Runs until dropped.
    pub async fn upkeep(&self) {
        // Beside other processes these may be theirs; then they end with their time.
        if !self.is_shared() {
            self.abandon_all().await;
        }
        let mut record_at = Instant::now() + RECORD;
        let mut rest = ROUND;
        loop {
            tokio::select! {
                () = sleep_until(Instant::now() + rest) => {}
                () = self.acknowledged.notified() => {}
            }
            rest = match self.expire_and_deliver().await {
                Err(HubError::Store(error)) => {
                    tracing::warn!(%error, "expiry, delivery or audit cannot be recorded; trying again");
                    FAILED_ROUND
                }
                // Another decision came between; the next round sees what it left.
                Ok(()) | Err(_) => ROUND,
            };
            if Instant::now() >= record_at {
                self.record_uses().await;
                record_at = Instant::now() + RECORD;
            }
        }
    }

    /// The texts of tokens that waited for delivery were lost with the last process.
    async fn abandon_all(&self) {
        for id in self.with(is_pending) {
            self.abandon(&id, "control was restarted").await;
        }
    }

    async fn abandon(&self, id: &ClusterId, why: &str) {
        let result = self
            .decide(id, None, |cluster, _| {
                Ok(registry::abandon_delivery(cluster).unwrap_or_else(|| cluster.clone()))
            })
            .await;
        self.end_delivery(id);
        match result {
            Ok(_) => tracing::warn!(
                cluster = %id,
                why,
                "delivery of a token was given up; every token stays valid: rotate again"
            ),
            Err(error) => tracing::warn!(cluster = %id, %error, "delivery cannot be given up"),
        }
    }

    async fn expire_and_deliver(&self) -> Result<(), HubError> {
        self.write_waiting().await?;
        let now_ms = self.now_ms();
        for id in self.with(|cluster| registry::has_expired(cluster, now_ms)) {
            self.decide(&id, None, |cluster, now_ms| {
                Ok(registry::expire(cluster, now_ms).unwrap_or_else(|| cluster.clone()))
            })
            .await?;
            tracing::info!(cluster = %id, "token expired");
        }
        for id in self.with(is_pending) {
            self.deliver(&id, now_ms).await?;
        }
        Ok(())
    }

    async fn deliver(&self, id: &ClusterId, now_ms: u64) -> Result<(), HubError> {
        let cluster = self.cluster(id)?;
        let pending = cluster
            .tokens
            .iter()
            .find(|token| token.pending_overlap_ms.is_some());
        let Some(token) = pending else { return Ok(()) };
        if !self.fleet.lock().is_delivered(id, &token.digest) {
            if token.created_unix_ms.saturating_add(DELIVERY_MS_MAX) <= now_ms {
                self.abandon(id, "not every agent acknowledged it in time")
                    .await;
            }
            return Ok(());
        }
        let digest = token.digest;
        self.decide(id, None, |cluster, now| {
            Ok(registry::acknowledge(cluster, &digest, now)?)
        })
        .await?;
        self.end_delivery(id);
        tracing::info!(cluster = %id, token = token.id, "token delivered; overlap starts");
        Ok(())
    }

    /// Records when tokens and clusters were last used. Losing it loses no decision.
    pub async fn record_uses(&self) {
        let touched = self.fleet.lock().take_touched();
        if touched.is_empty() {
            return;
        }
        if let Err(error) = self.store.touch(&touched).await {
            tracing::warn!(%error, "last uses cannot be recorded");
        }
    }

    fn with(&self, wanted: impl Fn(&Cluster) -> bool) -> Vec<ClusterId> {
        let clusters = self.clusters.load();
        let found = clusters.values().filter(|cluster| wanted(cluster));
        found.map(|cluster| cluster.id.clone()).collect()
    }
}

fn is_pending(cluster: &Cluster) -> bool {
    let mut tokens = cluster.tokens.iter();
    tokens.any(|token| token.pending_overlap_ms.is_some())
}
