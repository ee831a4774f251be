//! The admin port: metrics, probes, live sessions, drain.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use culvert_telemetry::admin::{Admin, Answer, text};
use culvert_telemetry::lifecycle::Phase;

use crate::plane::Plane;
use crate::sessions::Session;

/// Sessions listed when the caller names no number, and at most.
const LIST_DEFAULT: usize = 20;
const LIST_MAX: usize = 1000;

/// The routes of this data plane.
pub fn routes(plane: &Arc<Plane>) -> Arc<Admin> {
    let shared = || plane.clone();
    let (alive, ready, serving, extra) = (shared(), shared(), shared(), shared());
    Arc::new(Admin {
        metrics: plane.metrics.registry.clone(),
        healthz: Box::new(move || alive.is_alive()),
        readyz: Box::new(move || !ready.sessions.is_empty()),
        readyz_serve: Box::new(move || serving.is_serving()),
        extra: Box::new(move |request, _, peer| answer(&extra, request, peer)),
    })
}

fn answer(plane: &Plane, request: &Request<()>, peer: SocketAddr) -> Option<Answer> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/connections") => {
            let list = connections(plane, request.uri().query().unwrap_or(""));
            Some(text(StatusCode::OK, "application/json", list.to_string()))
        }
        (&Method::POST, "/admin/drain") => Some(drain(plane, peer)),
        _ => None,
    }
}

/// State changes only from this host, whatever the listener is bound to.
fn drain(plane: &Plane, peer: SocketAddr) -> Answer {
    if !peer.ip().to_canonical().is_loopback() {
        let why = "a drain is asked for from this host only\n".to_owned();
        return text(StatusCode::FORBIDDEN, "text/plain", why);
    }
    tracing::info!("drain asked for on the admin port");
    plane.shutdown.advance(Phase::Draining);
    text(StatusCode::ACCEPTED, "text/plain", "draining\n".to_owned())
}

fn connections(plane: &Plane, query: &str) -> Value {
    let value = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .next()
    };
    let limit = value("limit").and_then(|limit| limit.parse().ok());
    let limit = limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
    let cluster = value("cluster").filter(|cluster| !cluster.is_empty());
    let wanted = |session: &&Arc<Session>| {
        cluster.is_none_or(|cluster| session.key.cluster.as_str() == cluster)
    };
    let all = plane.sessions.list(usize::MAX);
    let total = all.iter().filter(wanted).count();
    let shown: Vec<Value> = all
        .iter()
        .filter(wanted)
        .take(limit)
        .map(|s| describe(s))
        .collect();
    json!({
        "apiVersion": "culvert.dev/v1",
        "kind": "ConnectionList",
        "tier": "none",
        "total": total,
        "truncated": total > shown.len(),
        "requestsInFlight": plane.in_flight(),
        "connections": shown,
    })
}

fn describe(session: &Session) -> Value {
    let mux = session.carrier.mux_stats();
    json!({
        "id": session.key.epoch.0,
        "cluster": session.key.cluster.as_str(),
        "instance": session.key.instance.to_string(),
        "mode": "http",
        "carrier": session.facts.kind.as_str(),
        "peer": session.facts.peer.to_string(),
        "version": session.facts.version,
        "age_s": session.facts.began.elapsed().as_secs_f64(),
        "rtt_ms": session.carrier.rtt_ms(),
        "streams": session.live(),
        "streams_max": session.streams_max(),
        "stalled": mux.streams_stalled,
        "memory_bytes": mux.memory_bytes,
        "state": if session.carrier.is_draining() { "draining" } else { "established" },
    })
}
