//! The observer of a relay: both sides of its pairs.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use tokio::net::TcpStream;

use culvert_engine::Observe;
use culvert_engine::legs::Leg;
use culvert_observe::{Leg as Tagged, Observer, Reason};
use culvert_telemetry::metrics::{ClusterLabels, Metrics};

use crate::config::{FlowLogConfig, FlowLogMode, RelayConfig};
use crate::launch::StartError;
use crate::observe::socket::Identity;
use crate::observe::{Seen, Sight, Watched, ends, launch, pair};

/// What all pairs belong to.
const PAIRS: &str = "_pair";

/// Watches the pairs of a relay.
pub struct Eye {
    sight: Arc<Sight>,
    seen: Seen,
}

/// Starts the observer, before any other thread exists.
///
/// # Errors
/// When more is required than the host permits.
pub fn start(config: &RelayConfig) -> Result<Observer, StartError> {
    let mut settings = launch::settings(config.observe, config.limits.pairs_max * 2);
    settings.clusters_max = 8;
    settings.keep_net_bind = [config.addr, config.admin_addr]
        .iter()
        .any(|addr| addr.port() > 0 && addr.port() < 1024);
    launch::launch(&settings)
}

/// None, for who starts a relay inside a process of its own.
pub fn absent() -> Observer {
    Observer::absent(Reason::Disabled)
}

/// A relay's listener, between bind and listen.
pub fn listener(observer: &Observer, socket: BorrowedFd<'_>) {
    observer.listener(socket, Tagged::Pair);
}

impl Eye {
    /// Registers what it tells.
    pub fn new(registry: &Metrics, observer: Observer) -> Self {
        let labels = Arc::new(ClusterLabels::default());
        let sight = Sight::new(registry, observer, &labels);
        let off = FlowLogConfig {
            mode: FlowLogMode::Off,
            slow: std::time::Duration::ZERO,
        };
        if let Err(why) = ends::start(&sight, &labels, off) {
            tracing::warn!(%why, "nobody hears of closed connections");
        }
        Self {
            seen: sight.cluster(&labels, PAIRS),
            sight,
        }
    }

    /// Watches a pair; the first is the side of the clients.
    pub fn watch(&self, sides: [&TcpStream; 2]) -> Box<dyn Observe> {
        let identity = Identity {
            seen: self.seen.clone(),
            leg: Leg::Pair,
            conn: Some(self.sight.number()),
        };
        let watched = sides.map(|side| {
            let mut watched = Watched::known(&self.sight, Leg::Pair);
            watched.becomes(side.as_fd(), &identity);
            watched
        });
        pair::Watch::new(watched, None, pair::Place::default())
    }
}
