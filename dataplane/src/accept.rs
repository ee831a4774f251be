//! From an accepted socket to whoever serves it, by its first bytes.

mod http;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use culvert_engine::legs::Leg;
use culvert_enrol::AgentCertificate;
use culvert_net::listen::Listener;
use culvert_net::tls::{AgentsTls, Alert, ServerTls, read_greeting};
use culvert_proto::channel::{ALPN, MAGIC};
use culvert_proto::limits::FIRST_BYTE_TIMEOUT_MS;
use culvert_telemetry::admin::Admin;

use crate::channel::arrive;
use crate::conn::{ClientSocket, ConnState};
use crate::lobby::Lobby;
use crate::observe::Watched;
use crate::plane::Plane;
use crate::routes::serve::Client;

/// A refused connection is read this long.
pub const FAREWELL: Duration = Duration::from_secs(1);
/// First byte of every TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Which listener this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Agents, data channels, sealed routes, port forwards of people.
    Public,
    /// Clients, metrics, probes.
    Internal,
    /// People.
    People,
    /// Agents that show certificates, and their data channels.
    Certified,
}

/// TLS of a listener.
#[derive(Clone)]
pub enum PortTls {
    /// Certificates of files.
    Files(Arc<ServerTls>),
    /// The listener of agents that show certificates.
    Agents(Arc<AgentsTls>),
}

/// What all threads that accept on one address share.
pub struct Port {
    /// Which listener this is.
    pub side: Side,
    /// TLS, unless plain.
    pub tls: Option<PortTls>,
    /// Connections that have not shown a request.
    pub lobby: Arc<Lobby>,
    /// Answers probes and metrics.
    pub admin: Arc<Admin>,
    /// Connections now.
    pub connections: Arc<AtomicUsize>,
}

/// One connection's place in the count of its listener.
pub struct Place(Arc<AtomicUsize>);

impl Side {
    /// Whether agents bring their data channels here.
    fn has_channels(self) -> bool {
        matches!(self, Self::Public | Self::Certified)
    }
}

impl Place {
    /// Takes a place; the number tells how many were taken before.
    pub fn take(connections: &Arc<AtomicUsize>) -> (Self, usize) {
        let before = connections.fetch_add(1, Ordering::Relaxed);
        (Self(connections.clone()), before)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
    let (place, before) = Place::take(&port.connections);
    if before >= plane.connections_max {
        plane.handshake_failed("tcp", "too_many_connections");
        let _ = stream.set_zero_linger();
        return;
    }
    let leg = match port.side {
        Side::Public | Side::Certified => Leg::Other,
        Side::Internal | Side::People => Leg::Client,
    };
    let arrival = Arrival {
        plane: plane.clone(),
        port: port.clone(),
        watched: Watched::accepted(&plane.metrics.sight, &stream, leg),
        stream,
        peer,
        place,
    };
    guard(plane.clone(), peer, arrival.serve());
}

/// Runs the task of one connection; its panic costs only itself.
pub fn guard(plane: Arc<Plane>, peer: SocketAddr, task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            let panics = plane.metrics.panics.with_label_values(&["connection"]);
            panics.inc();
            tracing::error!(%peer, "a connection's task panicked; only it is lost");
        }
    });
}

/// An accepted connection.
struct Arrival {
    plane: Arc<Plane>,
    port: Arc<Port>,
    stream: TcpStream,
    watched: Watched,
    peer: SocketAddr,
    place: Place,
}

impl Arrival {
    async fn serve(self) {
        let (guest, told) = self.port.lobby.enter();
        let state = ConnState::new(guest);
        let (plane, peer) = (self.plane.clone(), self.peer);
        tokio::select! {
            () = self.dispatch(state) => {}
            () = told.notified() => {
                plane.handshake_failed("tcp", "evicted");
                tracing::debug!(%peer, "the oldest silent connection made room for a new one");
            }
        }
    }

    async fn dispatch(self, state: Arc<ConnState>) {
        let wait = Duration::from_millis(FIRST_BYTE_TIMEOUT_MS);
        let mut first = [0];
        match tokio::time::timeout(wait, self.stream.peek(&mut first)).await {
            Ok(Ok(1)) => {}
            Ok(_) => return,
            Err(_) => return self.plane.handshake_failed("tcp", "silent"),
        }
        // Apart, so that who says nothing costs no more than this wait: 4 KiB in place of 35.
        Box::pin(self.lead(first[0], state)).await;
    }

    /// To whoever serves what begins with the byte `first`.
    async fn lead(mut self, first: u8, state: Arc<ConnState>) {
        let wait = Duration::from_millis(FIRST_BYTE_TIMEOUT_MS);
        let is_public = self.port.side == Side::Public;
        let mut seen = Bytes::new();
        if self.port.side.has_channels() && first == MAGIC[0] {
            match tokio::time::timeout(wait, magic(&mut self.stream)).await {
                Ok(Ok(Ok(seen))) => return self.channel(seen, state).await,
                Ok(Ok(Err(other))) => seen = other,
                Ok(Err(_)) => return,
                Err(_) => return self.plane.handshake_failed("tcp", "silent"),
            }
        }
        let is_tls = first == TLS_HANDSHAKE;
        if is_tls && is_public && self.plane.table.load().routes.has_sealed(None) {
            return self.by_name(state).await;
        }
        match self.port.tls.clone() {
            None => {
                let socket = ClientSocket::new(self.stream, seen, self.watched, state.clone());
                http::http1(&self.plane, &self.port, self.peer, state, socket).await;
            }
            Some(tls) if is_tls => self.handshake(&tls, seen, state).await,
            Some(_) => {
                self.plane.handshake_failed("tls", "plain_http");
                read_out(self.stream, PLAIN_ON_TLS).await;
            }
        }
    }

    async fn channel(self, seen: [u8; 4], state: Arc<ConnState>) {
        let from = arrive::From {
            peer: self.peer,
            place: self.place,
        };
        arrive::plain(&self.plane, from, (self.stream, self.watched), seen).await;
        drop(state);
    }

    /// TLS on a listener that has sealed routes: who asks for one of their names
    /// is joined unopened, anybody else is served here.
    async fn by_name(mut self, state: Arc<ConnState>) {
        let greeting = read_greeting(&mut self.stream).await;
        let is_routed = |name: &Option<String>| {
            let table = self.plane.table.load();
            let name = name.as_deref();
            name.is_some_and(|name| table.routes.sealed(None, name).is_some())
        };
        match greeting {
            Ok(greeting) if is_routed(&greeting.server_name) => {
                state.leave_lobby();
                self.client().sealed(None, greeting).await;
            }
            Ok(greeting) => match self.port.tls.clone() {
                Some(tls) => self.handshake(&tls, greeting.bytes, state).await,
                None => {
                    self.plane.handshake_failed("tls", "name_unknown");
                    read_out(self.stream, &Alert::UnrecognizedName.record()).await;
                }
            },
            Err(why) => self.client().misheard(why).await,
        }
    }

    fn client(self) -> Client {
        Client {
            plane: self.plane,
            stream: self.stream,
            watched: self.watched,
            peer: self.peer,
            place: self.place,
        }
    }

    /// TLS that ends here; `seen` was read of it.
    async fn handshake(self, tls: &PortTls, seen: Bytes, state: Arc<ConnState>) {
        let (plane, port, peer) = (&self.plane, &self.port, self.peer);
        let spare = rustix::io::fcntl_dupfd_cloexec(&self.stream, 0);
        let socket = ClientSocket::new(self.stream, seen, self.watched, state.clone());
        let accepted = match tls {
            PortTls::Files(tls) => tls.accept(socket).await,
            PortTls::Agents(tls) => tls.accept(socket).await,
        };
        let socket = match accepted {
            Ok(socket) => socket,
            Err(why) => {
                plane.handshake_failed("tls", "handshake");
                tracing::debug!(%peer, %why, "TLS handshake failed");
                if let Ok(spare) = spare {
                    end_gently(spare.into()).await;
                }
                return;
            }
        };
        drop(spare);
        let info = ServerTls::info(&socket);
        state.set_certified(!info.peer_certificates.is_empty());
        if port.side == Side::Certified {
            let leaf: &[u8] = info.peer_certificates.first().map_or(&[], |leaf| leaf);
            state.set_certificate(AgentCertificate::read(leaf));
        }
        match info.alpn.as_deref() {
            Some(b"h2") => http::http2(plane, port, peer, state, socket).await,
            Some(alpn) if alpn == ALPN && port.side.has_channels() => {
                let from = arrive::From {
                    peer,
                    place: self.place,
                };
                arrive::tls(plane, from, state.request_begins(), socket).await;
            }
            Some(alpn) if alpn == ALPN => plane.handshake_failed("tls", "alpn"),
            _ => http::http1(plane, port, peer, state, socket).await,
        }
    }
}

/// Reads as long as the bytes are those of a data channel's preface; else gives
/// back what was read.
async fn magic(stream: &mut TcpStream) -> std::io::Result<Result<[u8; 4], Bytes>> {
    let mut seen = [0; MAGIC.len()];
    let mut got = 0;
    while got < seen.len() {
        let read = stream.read(&mut seen[got..]).await?;
        got += read;
        if read == 0 || seen[..got] != MAGIC[..got] {
            return Ok(Err(Bytes::copy_from_slice(&seen[..got])));
        }
    }
    Ok(Ok(seen))
}

/// The last words (an alert) are sent already. A socket closed over unread bytes
/// ends in RST, which may overtake them: read what the client still sends.
async fn end_gently(stream: std::net::TcpStream) {
    if let Ok(stream) = TcpStream::from_std(stream) {
        read_out(stream, b"").await;
    }
}

/// Says `last_words`, and waits for the peer's end for at most a second.
pub async fn read_out(mut stream: TcpStream, last_words: &[u8]) {
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
