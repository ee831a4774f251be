//! The end of a relay: waiters are sent to another one, pairs get their time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use culvert_telemetry::lifecycle::Phase;

use super::hall::Hall;

/// Last words have this long to arrive.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);

/// Waits for the order to drain, drains, and ends the threads.
pub async fn run(hall: &Arc<Hall>) {
    hall.shutdown.reached(Phase::Draining).await;
    let grace = hall.config.drain_grace;
    let count = hall.desk.count();
    tracing::info!(
        grace_s = grace.as_secs(),
        waiting = count.waiting,
        pairs = count.pairs,
        "draining: waiters are told to go"
    );
    hall.metrics.draining.set(1);
    hall.desk.close(Hall::farewell());
    let finished = hall.shutdown.drain(grace, idle(hall)).await;
    tracing::info!(
        finished,
        pairs = hall.desk.count().pairs,
        "closing what is left"
    );
    let _ = tokio::time::timeout(FAREWELL_MAX, told(hall)).await;
    hall.exit();
}

async fn idle(hall: &Hall) {
    while hall.desk.count().pairs > 0 {
        tokio::time::sleep(POLL).await;
    }
}

async fn told(hall: &Hall) {
    while hall.parties.load(Ordering::Acquire) > 0 {
        tokio::time::sleep(POLL).await;
    }
}
