//! What all threads of a relay share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;

use culvert_engine::Engine;
use culvert_net::introduction::{Door, OuterServer};
use culvert_proto::pair::{Reply, ReplyCode};
use culvert_proto::relay::Sources;
use culvert_telemetry::lifecycle::{Phase, Shutdown};

use super::desk::Desk;
use super::metrics::Metrics;
use crate::beats::Beats;
use crate::config::RelayConfig;
use crate::launch::connections_max;
use crate::lobby::{LOBBY_MAX, Lobby};

/// A relay that drains is gone for as long as a restart takes, s.
const DRAIN_RETRY_S: u16 = 5;

/// One relay.
pub struct Hall {
    /// What it was told.
    pub config: RelayConfig,
    /// What the outer leg runs in.
    pub outer: OuterServer,
    /// How often each source came.
    pub sources: Mutex<Sources>,
    /// Who waits.
    pub desk: Arc<Desk>,
    /// Who has not shown a preface.
    pub lobby: Arc<Lobby>,
    /// Moves the bytes of pairs.
    pub engine: Engine,
    /// The instruments.
    pub metrics: Metrics,
    /// Watches pairs.
    #[cfg(feature = "hub")]
    pub eye: std::sync::OnceLock<super::watch::Eye>,
    /// Orders to drain and to stop.
    pub shutdown: Shutdown,
    /// Loops that run.
    pub beats: Beats,
    /// Sides that are no pair yet, also those that hear their last word.
    pub parties: Arc<AtomicUsize>,
    exit: watch::Sender<bool>,
    clock: Instant,
}

/// Counts one side while it lives.
pub struct Counted(Arc<AtomicUsize>);

impl Hall {
    /// A relay without anybody.
    pub fn new(config: RelayConfig, outer: OuterServer, engine: Engine) -> Arc<Self> {
        let metrics = Metrics::new();
        let lobby_max = (connections_max() / 2).min(LOBBY_MAX);
        Arc::new(Self {
            outer,
            sources: Mutex::new(Sources::new(config.connections_per_minute)),
            desk: Desk::new(config.limits),
            lobby: Lobby::new(lobby_max, metrics.introducing.clone()),
            engine,
            metrics,
            #[cfg(feature = "hub")]
            eye: std::sync::OnceLock::new(),
            shutdown: Shutdown::default(),
            beats: Beats::default(),
            parties: Arc::default(),
            exit: watch::Sender::new(false),
            clock: Instant::now(),
            config,
        })
    }

    /// Time since the start, ms.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What everybody is told while it drains.
    pub fn farewell() -> Reply {
        Reply {
            code: ReplyCode::Draining,
            retry_after_s: DRAIN_RETRY_S,
        }
    }

    /// How a connection is received that `refused` may keep out.
    pub fn door(&self, refused: Option<Reply>) -> Door {
        let draining = (!self.is_serving()).then(Self::farewell);
        Door {
            accepts_open: self.config.open_join,
            closed: draining.or(refused),
        }
    }

    /// Nobody has told it to drain.
    pub fn is_serving(&self) -> bool {
        self.shutdown.phase() == Phase::Running
    }

    /// Counts one side.
    pub fn party(&self) -> Counted {
        self.parties.fetch_add(1, Ordering::AcqRel);
        Counted(self.parties.clone())
    }

    /// Ends all threads.
    pub fn exit(&self) {
        self.exit.send_replace(true);
    }

    /// Resolves when all threads have to end.
    pub async fn exiting(&self) {
        // `self` holds the sender.
        let _ = self.exit.subscribe().wait_for(|exit| *exit).await;
    }

    /// Fills what is only known at scrape time.
    pub fn refresh_metrics(&self) {
        self.metrics.refresh(&self.engine, &self.desk.count());
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
