//! The broker's one long-lived pair: made again whenever it is lost, handed to whoever opens
//! connections on it.

use std::sync::Arc;
use std::time::Duration;

use culvert_mux::Budget;
use culvert_net::carrier::{Carrier, CarrierConfig, CarrierEnd, Driver, SessionEvent, carrier};
use culvert_net::crypto::random_bytes;
use culvert_net::dial::{Backoff, Setback};
use culvert_net::relay::End as _;
use culvert_net::socket::set_carrier_options;
use culvert_proto::close::CloseReason;
use culvert_proto::session::Role;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::broker::Ways;
use super::welcome::{LAST_WORDS, session_config};
use super::{Joined, RETRY_MAX, grant};
use crate::metrics::{AgentMetrics, PairForm, PairStep};

/// Keeps a pair.
pub(super) struct Keeper {
    pub(super) ways: Arc<Ways>,
    pub(super) budget: Arc<Budget>,
    pub(super) streams_max: u32,
    pub(super) metrics: Arc<AgentMetrics>,
    pub(super) stands: watch::Sender<Option<Carrier>>,
    /// Whoever finds the pair used up says so.
    pub(super) used_up: Arc<Notify>,
}

/// How a pair came to be left.
enum Left {
    /// It is over.
    Ended(CarrierEnd),
    /// It goes on with what it carries; a new one is needed.
    Retired {
        driver: JoinHandle<CarrierEnd>,
        /// The bridge asked for it, and ends it.
        by_bridge: bool,
    },
}

impl Keeper {
    /// Runs until dropped.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new(RETRY_MAX);
        loop {
            let joined = match self.ways.join().await {
                Ok(joined) => joined,
                Err(why) => {
                    let wait = backoff.next(Setback::Ordinary, u64::from_ne_bytes(random_bytes()));
                    tracing::warn!(%why, retry_in_ms = wait.as_millis(), "no pair");
                    sleep(wait).await;
                    continue;
                }
            };
            let began = Instant::now();
            let established = self.hold(joined).await;
            if established {
                backoff = Backoff::new(RETRY_MAX);
                // A bridge that is restarted ends pairs as fast as they are made.
                if began.elapsed() > RETRY_MAX {
                    continue;
                }
            }
            sleep(backoff.next(Setback::Ordinary, u64::from_ne_bytes(random_bytes()))).await;
        }
    }

    /// Holds a pair until it is over or to be left; whether it ever stood.
    async fn hold(&self, joined: Joined) -> bool {
        if let Some(Err(why)) = joined.socket().map(|socket| set_carrier_options(&socket)) {
            tracing::debug!(%why, "a pair ended before it began");
            return false;
        }
        let mut config = CarrierConfig::native(Role::Hub(grant()), session_config());
        config.mux.streams_max = self.streams_max;
        config.hangup = joined.hangup();
        let (carrier, driver) = carrier(joined, config, self.budget.clone());
        let stood = self.metrics.pair().stands(PairForm::Mux);
        let mut established = false;
        let left = self.follow(&carrier, driver, &mut established).await;
        self.stands.send_replace(None);
        self.metrics.connected.set(0);
        match left {
            Left::Ended(end) => {
                self.metrics.pair().ended(end.reason.as_str());
                if end.reason == CloseReason::Draining {
                    tracing::debug!("this broker left the pair");
                } else if established {
                    tracing::warn!(
                        code = end.reason.as_str(),
                        seen = end.detail,
                        "the pair is lost; it is made again"
                    );
                } else {
                    self.metrics.pair().failed(PairStep::Handshake);
                    tracing::warn!(
                        code = end.reason.as_str(),
                        seen = end.detail,
                        "the bridge did not take the pair; see that both sides have certificates of one CA, each for its own role"
                    );
                }
            }
            Left::Retired { driver, by_bridge } => {
                tracing::info!("the pair is left: what it carries goes on, a new one is made");
                let metrics = self.metrics.clone();
                tokio::spawn(async move {
                    if !by_bridge {
                        carrier.idle().await;
                        sleep(LAST_WORDS).await;
                        carrier.close(CloseReason::Draining);
                    }
                    let reason = driver.await.map_or(CloseReason::Internal, |end| end.reason);
                    metrics.pair().ended(reason.as_str());
                    drop(stood);
                });
            }
        }
        established
    }

    async fn follow(
        &self,
        carrier: &Carrier,
        driver: Driver<Joined>,
        established: &mut bool,
    ) -> Left {
        let mut driver = tokio::spawn(driver);
        loop {
            tokio::select! {
                end = &mut driver => {
                    return Left::Ended(end.unwrap_or_else(|why| CarrierEnd {
                        reason: CloseReason::Internal,
                        detail: why.to_string(),
                    }));
                }
                Some(event) = carrier.event() => match event {
                    SessionEvent::Established(facts) => {
                        tracing::info!(bridge_version = facts.version, "the pair stands");
                        *established = true;
                        self.metrics.connected.set(1);
                        self.stands.send_replace(Some(carrier.clone()));
                    }
                    SessionEvent::PeerDraining => {
                        return Left::Retired { driver, by_bridge: true };
                    }
                    other => tracing::trace!(event = ?other, "the bridge said"),
                },
                () = self.used_up.notified() => {
                    return Left::Retired { driver, by_bridge: false };
                }
            }
        }
    }
}

/// Longest wait for a pair by a local connection.
pub(super) const STANDS_MAX: Duration = Duration::from_secs(10);
