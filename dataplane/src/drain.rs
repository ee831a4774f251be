//! The end of a data plane: agents are told to move, requests in flight finish.

use std::sync::Arc;
use std::time::Duration;

use culvert_proto::close::CloseReason;
use culvert_telemetry::lifecycle::Phase;

use crate::plane::Plane;
use crate::session;

/// How long new requests are still served, so that whoever sends them here has
/// time to see that this data plane is not ready any more.
const NOTICE: Duration = Duration::from_secs(1);
/// What is said at the end has this long to leave.
const FAREWELL: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

/// Waits for the order to drain, drains, and ends the threads.
pub async fn run(plane: &Arc<Plane>) {
    plane.shutdown.reached(Phase::Draining).await;
    let grace = plane.config.drain_grace;
    tracing::info!(
        grace_s = grace.as_secs(),
        sessions = plane.sessions.len(),
        requests = plane.in_flight(),
        "draining: agents are told to move"
    );
    plane.metrics.draining.set(1);
    plane.sessions.leave_all();
    for agent in plane.sessions.list(usize::MAX) {
        session::drain(plane, &agent);
        if let Some(channels) = &agent.channels {
            channels.close();
        }
    }
    let notice = NOTICE.min(grace / 2);
    tokio::select! {
        () = tokio::time::sleep(notice) => {}
        () = plane.shutdown.reached(Phase::Stopped) => {}
    }
    plane.refuse_requests();
    let finished = plane.shutdown.drain(grace - notice, plane.idle()).await;
    farewell(plane, finished).await;
    plane.exit();
}

async fn farewell(plane: &Arc<Plane>, finished: bool) {
    let reason = if finished {
        CloseReason::Shutdown
    } else {
        CloseReason::DrainDeadline
    };
    tracing::info!(
        finished,
        requests = plane.in_flight(),
        "closing what is left"
    );
    plane.flows.cut_all(reason);
    for agent in plane.sessions.list(usize::MAX) {
        agent.carrier.close(reason);
    }
    let told = async {
        while !plane.sessions.is_empty() || plane.in_flight() > 0 {
            tokio::time::sleep(POLL).await;
        }
    };
    let _ = tokio::time::timeout(FAREWELL, told).await;
}
