//! Probes and metrics.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use culvert_telemetry::admin::{Admin, serve};
use culvert_telemetry::metrics::Metrics;

/// The event loop has stopped when it did not tick for this long.
const STOPPED_AFTER: Duration = Duration::from_secs(10);

/// The health listener.
pub struct Health {
    listener: TcpListener,
    admin: Arc<Admin>,
    ticker: Ticker,
}

/// Shows that the event loop runs.
#[derive(Clone)]
pub struct Ticker {
    start: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Ticker {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last_ms: Arc::default(),
        }
    }

    /// The loop came round.
    pub fn tick(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn is_ticking(&self) -> bool {
        let silent = self
            .now_ms()
            .saturating_sub(self.last_ms.load(Ordering::Relaxed));
        u128::from(silent) < STOPPED_AFTER.as_millis()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Health {
    /// Binds the address; nothing is answered yet. `ready` says whether the process does its job.
    ///
    /// # Errors
    /// The operating system's, when the address is taken.
    pub fn bind(
        addr: SocketAddr,
        metrics: Metrics,
        ready: impl Fn() -> bool + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(addr)
            .map_err(|why| std::io::Error::new(why.kind(), format!("{addr}: {why}")))?;
        let ticker = Ticker::new();
        let (ticking, ready) = (ticker.clone(), Arc::new(ready));
        let serving = ready.clone();
        let admin = Admin {
            metrics,
            healthz: Box::new(move || ticking.is_ticking()),
            readyz: Box::new(move || ready()),
            readyz_serve: Box::new(move || serving()),
            extra: Box::new(|_, _, _| None),
        };
        Ok(Self {
            listener,
            admin: Arc::new(admin),
            ticker,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The operating system's.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The handle that shows life.
    #[must_use]
    pub fn ticker(&self) -> Ticker {
        self.ticker.clone()
    }

    /// Answers until dropped.
    pub async fn serve(self) {
        if let Err(why) = serve(self.listener, self.admin).await {
            tracing::error!(%why, "the health listener does not answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_still_is_noticed() {
        let mut ticker = Ticker::new();
        assert!(ticker.is_ticking());
        ticker.start = Instant::now().checked_sub(STOPPED_AFTER).unwrap();
        assert!(!ticker.is_ticking());
        ticker.tick();
        assert!(ticker.is_ticking());
    }
}
