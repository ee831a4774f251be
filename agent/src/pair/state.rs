//! How a broker without files comes to its certificate: what was kept, or what the bridge gives for
//! a pairing code.

use std::sync::Arc;
use std::time::Duration;

use culvert_net::crypto::random_bytes;
use culvert_net::dial::{Backoff, Setback};
use culvert_net::tls::pair::Side;
use culvert_pair::{
    BrokerState, Identity, PairingCode, RENEW_BEFORE_S, Revision, Store as _, StoreError,
};
use culvert_proto::pair::{RendezvousId, Role};
use tokio::time::{sleep, timeout};

use super::boot::{BootError, confirm, obtain};
use super::broker::Ways;
use super::party::{Own, Party};
use super::{PairError, unix_s};
use crate::config::BootConfig;
use crate::metrics::{AgentMetrics, PairStep};

/// Longest wait between two tries to get a certificate: a code that is refused stays so.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// How often the age of the certificate is looked at, and a renewal tried.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// Longest try to renew.
const RENEW_MAX: Duration = Duration::from_secs(120);

/// A broker's keys and where they are kept.
pub(super) struct Holder {
    boot: BootConfig,
    info_hash: Option<RendezvousId>,
    state: BrokerState,
    revision: Option<Revision>,
    metrics: Arc<AgentMetrics>,
}

impl Holder {
    /// Reads what was kept.
    ///
    /// # Errors
    /// When the store cannot be read, or holds nothing to begin with.
    pub(super) async fn load(
        boot: BootConfig,
        info_hash: Option<RendezvousId>,
        metrics: Arc<AgentMetrics>,
    ) -> Result<Holder, PairError> {
        let kept = match &boot.state.store {
            Some(store) => store.load_broker().await?,
            None => None,
        };
        let (mut state, revision) = match (kept, &boot.join, &boot.state.store) {
            (Some((state, revision)), ..) => (state, Some(revision)),
            (None, None, store) => {
                let place = store.as_ref().map(|store| store.place());
                let place = place.unwrap_or_else(|| "memory".to_owned());
                return Err(PairError::NoKey(place));
            }
            (None, Some(_), _) => (BrokerState::generate().map_err(PairError::Make)?, None),
        };
        if !boot.state.keeps {
            state.set_identity(None);
        }
        let mut holder = Holder {
            boot,
            info_hash,
            state,
            revision,
            metrics,
        };
        let expired = |join: &culvert_pair::PairJoin| join.is_expired(unix_s());
        if holder.identity().is_none() && holder.boot.join.as_ref().is_some_and(expired) {
            return Err(PairError::Expired);
        }
        if holder.revision.is_none()
            && let Some(store) = &holder.boot.state.store
        {
            // The code is good for the key that used it, also after a kill in between.
            holder.revision = Some(store.save_broker(&holder.state, None).await?);
        }
        Ok(holder)
    }

    /// What was kept, if it may still be shown.
    fn identity(&self) -> Option<&Identity> {
        let identity = self.state.identity()?;
        if let Err(why) = identity.check(Role::Broker, unix_s()) {
            tracing::warn!(%why, "the kept certificate is of no use");
            return None;
        }
        match self.info_hash {
            Some(wanted) if wanted != identity.info_hash() => {
                tracing::warn!(%wanted, seen = %identity.info_hash(), "the kept certificate is another pair's");
                None
            }
            _ => Some(identity),
        }
    }

    /// Makes `own` a holder of a certificate, and keeps it one, until dropped.
    pub(super) async fn run(mut self, ways: Arc<Ways>, own: Arc<Own>) {
        if self.identity().is_none() {
            tracing::info!("no certificate yet: waiting for the bridge to give one");
            let mut backoff = Backoff::new(RETRY_MAX);
            while let Err(why) = self.obtain(&ways).await {
                self.metrics.pair().failed(PairStep::Boot);
                let wait = backoff.next(Setback::Ordinary, u64::from_ne_bytes(random_bytes()));
                tracing::warn!(%why, retry_in_ms = wait.as_millis(), "no certificate");
                sleep(wait).await;
            }
        }
        loop {
            if let Some(identity) = self.state.identity()
                && let Err(why) = own.become_holder(identity)
            {
                tracing::error!(%why, "the certificate cannot be shown");
            }
            while !self.is_old() {
                sleep(LOOK_EVERY).await;
            }
            match timeout(RENEW_MAX, self.obtain(&ways)).await {
                Ok(Ok(())) => tracing::info!("the certificate is renewed"),
                _ => {
                    tracing::warn!(
                        "the certificate ends within 30 days and the bridge gives no new one: register the broker again"
                    );
                    sleep(LOOK_EVERY).await;
                }
            }
        }
    }

    fn is_old(&self) -> bool {
        let life = self
            .state
            .identity()
            .map(|it| it.check(Role::Broker, unix_s()));
        let until = life
            .and_then(Result::ok)
            .map_or(0, |life| life.until_unix_s);
        until.saturating_sub(unix_s()) < RENEW_BEFORE_S
    }

    /// One try at a certificate; kept before it is shown.
    async fn obtain(&mut self, ways: &Ways) -> Result<(), BootError> {
        let code = match &self.boot.join {
            Some(join) => PairingCode::from_bytes(*join.code.expose()),
            None => self.state.code(),
        };
        let party = Party::with_code(Side::Broker, self.state.boot_key(), &code, None);
        let party = Arc::new(party.map_err(|why| BootError::Own(why.to_string()))?);
        let mut joined = ways.join_as(&party).await?;
        let identity = Box::pin(obtain(&mut joined, &code, self.info_hash)).await?;
        tracing::info!(info_hash = %identity.info_hash(), "the bridge gave this broker its certificate");
        self.state.set_identity(Some(identity));
        match self.keep().await {
            Ok(()) => confirm(&mut joined).await,
            Err(why) => {
                joined.hangup().demand();
                tracing::error!(%why, "the certificate is not kept: it serves until this process ends; the pairing code stays good for this broker within its day");
            }
        }
        Ok(())
    }

    async fn keep(&mut self) -> Result<(), StoreError> {
        let (Some(store), true) = (&self.boot.state.store, self.boot.state.keeps) else {
            return Ok(());
        };
        let saved = store.save_broker(&self.state, self.revision.as_ref());
        self.revision = Some(saved.await?);
        Ok(())
    }
}
