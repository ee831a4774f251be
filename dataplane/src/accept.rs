//! From an accepted socket to requests: first byte, TLS, HTTP.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use culvert_net::listen::Listener;
use culvert_net::tls::ServerTls;
use culvert_proto::answer::BodyKind;
use culvert_proto::close::CloseReason;
use culvert_proto::head::HeadError;
use culvert_proto::limits::{FIRST_BYTE_TIMEOUT_MS, HEAD_BYTES_MAX, HEAD_FIELDS_MAX};
use culvert_telemetry::admin::Admin;

use crate::conn::{ClientSocket, ConnState, InFlight};
use crate::ingress::{self, Body, Refusal};
use crate::lobby::Lobby;
use crate::plane::Plane;
use crate::tunnel;

/// h2: streams of one connection, resets that wait, and windows.
const H2_STREAMS_MAX: u32 = 100;
const H2_RESETS_MAX: usize = 20;
const H2_STREAM_WINDOW: u32 = 64 << 10;
const H2_CONNECTION_WINDOW: u32 = 1 << 20;
/// A refused connection is read this long.
const FAREWELL: Duration = Duration::from_secs(1);
/// First byte of every TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Which listener this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Agents.
    Public,
    /// Clients, metrics, probes.
    Internal,
}

/// What all threads that accept on one address share.
pub struct Port {
    /// Which listener this is.
    pub side: Side,
    /// TLS, unless plain.
    pub tls: Option<Arc<ServerTls>>,
    /// Connections that have not shown a request.
    pub lobby: Arc<Lobby>,
    /// Answers probes and metrics.
    pub admin: Arc<Admin>,
    /// Most connections at once.
    pub connections_max: usize,
    /// Connections now.
    pub connections: AtomicUsize,
}

/// One connection's place.
struct Place(Arc<Port>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts on this thread until new requests are refused.
///
/// # Errors
/// When the runtime cannot take the socket.
pub async fn accept(plane: Arc<Plane>, port: Arc<Port>, listener: Listener) -> std::io::Result<()> {
    let acceptor = listener.start()?;
    let refusing = plane.refusing();
    tokio::pin!(refusing);
    loop {
        tokio::select! {
            (stream, peer) = acceptor.accept() => admit(&plane, &port, stream, peer),
            () = &mut refusing => break,
        }
    }
    // What the kernel accepted for us already is answered, not reset.
    while let Some((stream, peer)) = acceptor.accept().now_or_never() {
        admit(&plane, &port, stream, peer);
    }
    Ok(())
}

fn admit(plane: &Arc<Plane>, port: &Arc<Port>, stream: TcpStream, peer: SocketAddr) {
    let before = port.connections.fetch_add(1, Ordering::Relaxed);
    let place = Place(port.clone());
    if before >= port.connections_max {
        failed(plane, "tcp", "too_many_connections");
        let _ = stream.set_zero_linger();
        return;
    }
    let (plane, port) = (plane.clone(), port.clone());
    tokio::spawn(async move {
        let served = AssertUnwindSafe(serve(&plane, &port, stream, peer))
            .catch_unwind()
            .await;
        if served.is_err() {
            plane
                .metrics
                .panics
                .with_label_values(&["connection"])
                .inc();
            tracing::error!(%peer, "a connection's task panicked; only it is lost");
        }
        drop(place);
    });
}

async fn serve(plane: &Arc<Plane>, port: &Arc<Port>, stream: TcpStream, peer: SocketAddr) {
    let (guest, told) = port.lobby.enter();
    let state = ConnState::new(guest);
    tokio::select! {
        () = connection(plane, port, stream, peer, state) => {}
        () = told.notified() => {
            failed(plane, "tcp", "evicted");
            tracing::debug!(%peer, "the oldest silent connection made room for a new one");
        }
    }
}

async fn connection(
    plane: &Arc<Plane>,
    port: &Arc<Port>,
    stream: TcpStream,
    peer: SocketAddr,
    state: Arc<ConnState>,
) {
    let wait = Duration::from_millis(FIRST_BYTE_TIMEOUT_MS);
    let mut first = [0];
    match tokio::time::timeout(wait, stream.peek(&mut first)).await {
        Ok(Ok(1)) => {}
        Ok(_) => return,
        Err(_) => return failed(plane, "tcp", "silent"),
    }
    let Some(tls) = &port.tls else {
        let socket = ClientSocket::new(stream, bytes::Bytes::new(), state.clone());
        return http1(plane, port, peer, state, socket).await;
    };
    if first[0] != TLS_HANDSHAKE {
        failed(plane, "tls", "plain_http");
        return read_out(stream, PLAIN_ON_TLS).await;
    }
    let spare = rustix::io::fcntl_dupfd_cloexec(&stream, 0);
    let socket = ClientSocket::new(stream, bytes::Bytes::new(), state.clone());
    match tls.accept(socket).await {
        Ok(socket) if ServerTls::info(&socket).alpn.as_deref() == Some(b"h2") => {
            drop(spare);
            http2(plane, port, peer, state, socket).await;
        }
        Ok(socket) => {
            drop(spare);
            http1(plane, port, peer, state, socket).await;
        }
        Err(why) => {
            failed(plane, "tls", "handshake");
            tracing::debug!(%peer, %why, "TLS handshake failed");
            if let Ok(spare) = spare {
                end_gently(spare.into()).await;
            }
        }
    }
}

/// The last words (an alert) are sent already. A socket closed over unread bytes
/// ends in RST, which may overtake them: read what the client still sends.
async fn end_gently(stream: std::net::TcpStream) {
    if let Ok(stream) = TcpStream::from_std(stream) {
        read_out(stream, b"").await;
    }
}

async fn read_out(mut stream: TcpStream, last_words: &[u8]) {
    let mut unread = [0; 1024];
    let _ = tokio::time::timeout(FAREWELL, async {
        stream.write_all(last_words).await?;
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        std::io::Result::Ok(())
    })
    .await;
}

const PLAIN_ON_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\
    content-type: text/plain\r\ncontent-length: 45\r\n\r\n\
    This port speaks TLS: use https:// or wss://.";

fn failed(plane: &Plane, stage: &str, reason: &str) {
    plane
        .metrics
        .handshake_failures
        .with_label_values(&[stage, reason])
        .inc();
}

async fn http1<S>(
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

async fn http2<S>(
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
        Side::Public if request.method() == Method::CONNECT => {
            let why = HeadError::Method;
            Refusal::closing(why.close_reason(), why.to_string()).answer(BodyKind::Problem)
        }
        Side::Public => match tunnel::agent_path(path) {
            Some(path) => {
                let from = tunnel::From { path, peer };
                tunnel::enter(plane, from, in_flight, request).await
            }
            None if path == "/healthz" => probe(port, &request),
            None => Refusal::new(CloseReason::UnknownPath, "").answer(BodyKind::Problem),
        },
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
