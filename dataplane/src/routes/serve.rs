//! Clients of routes: from an accepted socket to a flow.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::net::RecvFlags;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use culvert_engine::legs::Leg;
use culvert_net::listen::Listener;
use culvert_net::tls::{Alert, Greeting, GreetingError, read_greeting};
use culvert_proto::close::CloseReason;
use culvert_proto::limits::FIRST_BYTES_MAX;

use super::follow::{Handed, RoutePort};
use super::{Mode, Way};
use crate::accept::{Place, guard, read_out};
use crate::flow::{Ask, Origin};
use crate::observe::Watched;
use crate::plane::Plane;

/// Accepts on every listener that this thread is handed.
pub async fn run(plane: Arc<Plane>, mut handed: mpsc::UnboundedReceiver<Handed>) {
    while let Some((port, listener)) = handed.recv().await {
        let plane = plane.clone();
        tokio::spawn(async move {
            if let Err(why) = accept(&plane, port, listener).await {
                tracing::error!(%why, "a thread cannot accept for a route");
            }
        });
    }
}

async fn accept(
    plane: &Arc<Plane>,
    port: Arc<RoutePort>,
    listener: Listener,
) -> std::io::Result<()> {
    let acceptor = listener.start()?;
    let mut closing = port.closing.clone();
    loop {
        tokio::select! {
            (stream, peer) = acceptor.accept() => admit(plane, &port, stream, peer),
            _ = closing.wait_for(|closing| *closing) => return Ok(()),
        }
    }
}

fn admit(plane: &Arc<Plane>, port: &Arc<RoutePort>, stream: TcpStream, peer: SocketAddr) {
    let (place, before) = Place::take(&port.connections);
    if before >= plane.connections_max {
        plane.handshake_failed("tcp", "too_many_connections");
        let _ = stream.set_zero_linger();
        return;
    }
    let client = Client {
        plane: plane.clone(),
        watched: Watched::accepted(&plane.metrics.sight, &stream, Leg::Client),
        stream,
        peer,
        place,
    };
    let port = port.clone();
    guard(plane.clone(), peer, async move {
        match port.mode {
            Mode::Tcp => client.forward(port.at).await,
            Mode::Sealed => client.hear(&port).await,
        }
    });
}

/// A client of a route.
pub struct Client {
    /// The data plane.
    pub plane: Arc<Plane>,
    /// Its connection.
    pub stream: TcpStream,
    /// How it is counted.
    pub watched: Watched,
    /// Its address.
    pub peer: SocketAddr,
    /// Its place among the listener's connections.
    pub place: Place,
}

impl Client {
    /// A port forward: whatever the client has sent goes along.
    async fn forward(mut self, at: SocketAddr) {
        let way = self.plane.table.load().routes.tcp(at).cloned();
        let Some(way) = way else {
            return self.reset(CloseReason::RouteRemoved);
        };
        self.arm(Some(Duration::ZERO));
        let Ok(early) = first_bytes(&self.stream) else {
            // Gone before it began.
            return;
        };
        let ask = self.ask(Origin::Tcp(at), way, early);
        match ask.begin().await {
            Ok(begun) => begun.join_socket(self.stream, self.watched, self.place),
            Err(refusal) => self.reset(refusal.reason),
        }
    }

    /// On an address of its own: nobody but sealed routes is served.
    async fn hear(mut self, port: &RoutePort) {
        let (guest, told) = port.lobby.enter();
        let greeting = tokio::select! {
            greeting = read_greeting(&mut self.stream) => greeting,
            () = told.notified() => return self.plane.handshake_failed("tcp", "evicted"),
        };
        match greeting {
            Ok(greeting) => {
                drop(guest);
                self.sealed(Some(port.at), greeting).await;
            }
            Err(why) => self.misheard(why).await,
        }
    }

    /// A client whose ClientHello could not be read.
    pub async fn misheard(self, why: GreetingError) {
        self.plane.handshake_failed("tls", "client_hello");
        tracing::debug!(peer = %self.peer, %why, "no ClientHello");
        if let GreetingError::Malformed { alert, .. } = why {
            read_out(self.stream, &alert).await;
        }
    }

    /// A client that is led by the name it asked for. It is never answered in
    /// the service's place, but for an alert where it cannot be led.
    pub async fn sealed(mut self, at: Option<SocketAddr>, greeting: Greeting) {
        let Greeting { bytes, server_name } = greeting;
        let name = server_name.unwrap_or_default();
        let way = self.plane.table.load().routes.sealed(at, &name).cloned();
        let Some(way) = way else {
            self.plane
                .handshake_failed("tls", CloseReason::NameUnknown.as_str());
            tracing::debug!(peer = %self.peer, name, "no route for this server name");
            return read_out(self.stream, &Alert::UnrecognizedName.record()).await;
        };
        let origin = Origin::Sealed {
            at,
            name: name.into(),
        };
        self.arm(Some(Duration::ZERO));
        match self.ask(origin, way, bytes).begin().await {
            Ok(begun) => begun.join_socket(self.stream, self.watched, self.place),
            Err(refusal) => {
                self.watched.ends(refusal.reason);
                self.arm(None);
                read_out(self.stream, &Alert::InternalError.record()).await;
            }
        }
    }

    fn ask(&mut self, origin: Origin, way: Way, early: Bytes) -> Ask {
        let ask = Ask::new(&self.plane, origin, way, self.peer, early);
        self.watched.becomes(self.stream.as_fd(), &ask.identity());
        ask
    }

    /// Armed, the connection of a client whose bytes were read can only end in
    /// RST, also when this process is killed.
    fn arm(&self, linger: Option<Duration>) {
        if let Err(why) = rustix::net::sockopt::set_socket_linger(&self.stream, linger) {
            tracing::debug!(peer = %self.peer, %why, "a client's socket keeps its linger");
        }
    }

    fn reset(mut self, reason: CloseReason) {
        self.watched.ends(reason);
        tracing::debug!(peer = %self.peer, %reason, "client refused");
        self.arm(Some(Duration::ZERO));
    }
}

/// What has come of a new connection already, without waiting; its end is read
/// again by whoever relays it.
fn first_bytes(stream: &TcpStream) -> std::io::Result<Bytes> {
    let mut bytes = [0; FIRST_BYTES_MAX];
    match rustix::net::recv(stream, &mut bytes, RecvFlags::DONTWAIT) {
        Ok((got, _)) => Ok(Bytes::copy_from_slice(&bytes[..got])),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Bytes::new()),
        Err(why) => Err(why.into()),
    }
}
