//! Metrics, probes and the order to drain.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, StatusCode};

use culvert_telemetry::admin::{Admin, Answer, Extra, text};
use culvert_telemetry::lifecycle::Phase;
use culvert_telemetry::metrics::Metrics;

use super::hall::Hall;

/// The routes of the admin listener. It takes drains when it is on loopback itself.
pub fn routes(hall: &Arc<Hall>) -> Arc<Admin> {
    let extra: Extra = match hall.config.drain_addr {
        None => drains(hall),
        Some(_) => Box::new(|_, _, _| None),
    };
    admin(hall, hall.metrics.registry.clone(), extra)
}

/// The routes of the listener for drains.
pub fn drain_routes(hall: &Arc<Hall>) -> Arc<Admin> {
    admin(hall, Metrics::default(), drains(hall))
}

fn admin(hall: &Arc<Hall>, metrics: Metrics, extra: Extra) -> Arc<Admin> {
    let (alive, ready, serving) = (hall.clone(), hall.clone(), hall.clone());
    Arc::new(Admin {
        metrics,
        healthz: Box::new(move || alive.beats.is_alive()),
        readyz: Box::new(move || ready.is_serving()),
        readyz_serve: Box::new(move || serving.is_serving()),
        extra,
    })
}

fn drains(hall: &Arc<Hall>) -> Extra {
    let hall = hall.clone();
    Box::new(move |request, _, peer| {
        let asked = (request.method(), request.uri().path()) == (&Method::POST, "/admin/drain");
        asked.then(|| drain(&hall, peer).into())
    })
}

fn drain(hall: &Hall, peer: SocketAddr) -> Answer {
    tracing::info!(%peer, "drain asked for");
    hall.shutdown.advance(Phase::Draining);
    text(StatusCode::ACCEPTED, "text/plain", "draining\n".to_owned())
}
