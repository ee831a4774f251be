//! Connections that speak HTTP.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt as _;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use culvert_proto::answer::BodyKind;
use culvert_proto::close::CloseReason;
use culvert_proto::head::HeadError;
use culvert_proto::hello::{CERTIFIED_PATH, REGISTER_PATH};
use culvert_proto::limits::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX};
use culvert_proto::route::PEOPLE_PREFIX;

use super::{Port, Side};
use crate::conn::{ConnState, InFlight};
use crate::console;
use crate::ingress::{self, Body, Refusal};
use crate::plane::Plane;
use crate::tunnel;

/// h2: streams of one connection, resets that wait, and windows.
const H2_STREAMS_MAX: u32 = 100;
const H2_RESETS_MAX: usize = 20;
const H2_STREAM_WINDOW: u32 = 64 << 10;
const H2_CONNECTION_WINDOW: u32 = 1 << 20;

pub async fn http1<S>(
    plane: &Arc<Plane>,
    port: &Arc<Port>,
    peer: SocketAddr,
    state: Arc<ConnState>,
    socket: S,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let in_flight = state.request_begins();
        answer(plane, port, peer, in_flight, request)
    });
    // Deadlines are the socket's own: hyper would use one for idle and head.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(HEAD_FIELDS_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    tokio::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = plane.refusing() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended(peer, served);
}

pub async fn http2<S>(
    plane: &Arc<Plane>,
    port: &Arc<Port>,
    peer: SocketAddr,
    state: Arc<ConnState>,
    socket: S,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    state.set_multiplexed();
    let (plane, port) = (plane.clone(), port.clone());
    let shared = plane.clone();
    let service = service_fn(move |request| {
        let in_flight = state.request_begins();
        let (plane, port) = (plane.clone(), port.clone());
        async move { answer(&plane, &port, peer, in_flight, request).await }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_pending_accept_reset_streams(H2_RESETS_MAX)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = shared.refusing() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended(peer, served);
}

fn ended(peer: SocketAddr, served: hyper::Result<()>) {
    if let Err(why) = served {
        tracing::debug!(%peer, why = &why as &dyn std::error::Error, "connection ended");
    }
}

async fn answer(
    plane: &Arc<Plane>,
    port: &Arc<Port>,
    peer: SocketAddr,
    in_flight: InFlight,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let path = request.uri().path();
    let answer = match port.side {
        Side::Public | Side::People if request.method() == Method::CONNECT => {
            let why = HeadError::Method;
            Refusal::closing(why.close_reason(), why.to_string()).answer(BodyKind::Problem)
        }
        Side::Certified => match tunnel::agent_path(path) {
            Some(path) if path == CERTIFIED_PATH => {
                let from = tunnel::From { path, peer };
                tunnel::enter(plane, from, in_flight, request).await
            }
            _ => Refusal::new(CloseReason::UnknownPath, "").answer(BodyKind::Problem),
        },
        // Where agents show certificates, that path is theirs alone.
        Side::Public if path == CERTIFIED_PATH && plane.certified.tls.is_some() => {
            Refusal::new(CloseReason::UnknownPath, "").answer(BodyKind::Problem)
        }
        Side::Public => match tunnel::agent_path(path) {
            Some(path) => {
                let from = tunnel::From { path, peer };
                tunnel::enter(plane, from, in_flight, request).await
            }
            None if path == "/healthz" => probe(port, &request),
            None if path.starts_with(ingress::FORWARD_PATH) => {
                ingress::forward(plane, peer, in_flight, request).await
            }
            None if plane.people_are_public() => people(plane, peer, in_flight, request).await,
            // Agents have no certificate yet when they ask for one.
            None if path == REGISTER_PATH && !plane.wants_certificates() => {
                console(plane, peer, in_flight, request).await
            }
            None => Refusal::new(CloseReason::UnknownPath, "").answer(BodyKind::Problem),
        },
        Side::People if path == "/healthz" => probe(port, &request),
        Side::People => people(plane, peer, in_flight, request).await,
        Side::Internal => match path {
            "/metrics" | "/healthz" | "/livez" | "/readyz" | "/readyz/serve" => {
                plane.refresh_metrics();
                probe(port, &request)
            }
            _ => ingress::tunnel(plane, peer, in_flight, request).await,
        },
    };
    Ok(answer)
}

/// What people ask for: a cluster's service, or else control's own pages.
async fn people(
    plane: &Arc<Plane>,
    peer: SocketAddr,
    in_flight: InFlight,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.uri().path().starts_with(PEOPLE_PREFIX) {
        return ingress::person(plane, peer, in_flight, request).await;
    }
    console(plane, peer, in_flight, request).await
}

async fn console(
    plane: &Arc<Plane>,
    peer: SocketAddr,
    in_flight: InFlight,
    request: Request<Incoming>,
) -> Response<Body> {
    match plane.config.control_api {
        Some(control) => console::pass(plane, control, peer, in_flight, request).await,
        None => Refusal::new(CloseReason::UnknownPath, "").answer(BodyKind::Problem),
    }
}

fn probe(port: &Port, request: &Request<Incoming>) -> Response<Body> {
    let common = port.admin.common(request.method(), request.uri().path());
    match common {
        Some(answer) => answer.map(|body| {
            let whole = http_body_util::BodyExt::collect(body).now_or_never();
            let whole = whole
                .and_then(Result::ok)
                .map(http_body_util::Collected::to_bytes);
            Body::from(whole.unwrap_or_default())
        }),
        None => Refusal::new(CloseReason::UnknownPath, "").answer(BodyKind::Problem),
    }
}
