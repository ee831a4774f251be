//! The admin port: metrics, probes, live sessions, drain, trace.

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_telemetry::admin::{Admin, Answer, Reply, text};
use culvert_telemetry::lifecycle::Phase;
use http::{Method, Request, StatusCode};

use crate::connections::Connections;
use crate::plane::Plane;
use crate::trace;

/// The routes of this data plane.
pub fn routes(plane: &Arc<Plane>) -> Arc<Admin> {
    let shared = || plane.clone();
    let (alive, ready, serving, extra) = (shared(), shared(), shared(), shared());
    let connections = Connections::new();
    Arc::new(Admin {
        metrics: plane.metrics.registry.clone(),
        healthz: Box::new(move || alive.is_alive()),
        readyz: Box::new(move || !ready.sessions.is_empty()),
        readyz_serve: Box::new(move || serving.is_serving()),
        extra: Box::new(move |request, _, peer| answer(&extra, &connections, request, peer)),
    })
}

fn answer(
    plane: &Arc<Plane>,
    connections: &Arc<Connections>,
    request: &Request<()>,
    peer: SocketAddr,
) -> Option<Reply> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/connections") => {
            let query = request.uri().query().unwrap_or("").to_owned();
            let (plane, connections) = (plane.clone(), connections.clone());
            Some(Reply::Later(Box::pin(async move {
                connections.list(&plane, query).await
            })))
        }
        (&Method::POST, "/admin/drain") => Some(match refused(peer) {
            Some(refused) => refused.into(),
            None => drain(plane).into(),
        }),
        (&Method::POST, "/admin/trace") => Some(match refused(peer) {
            Some(refused) => refused.into(),
            None => {
                let query = request.uri().query().unwrap_or("").to_owned();
                Reply::Later(Box::pin(trace::run(plane.clone(), query)))
            }
        }),
        _ => None,
    }
}

/// State changes only from this host, whatever the listener is bound to.
fn refused(peer: SocketAddr) -> Option<Answer> {
    if peer.ip().to_canonical().is_loopback() {
        return None;
    }
    let why = "what changes this data plane is asked for from its host only\n".to_owned();
    Some(text(StatusCode::FORBIDDEN, "text/plain", why))
}

fn drain(plane: &Plane) -> Answer {
    tracing::info!("drain asked for on the admin port");
    plane.shutdown.advance(Phase::Draining);
    text(StatusCode::ACCEPTED, "text/plain", "draining\n".to_owned())
}
