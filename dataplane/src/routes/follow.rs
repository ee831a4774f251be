//! Listeners that follow the table: bound when a route wants them, closed when
//! none does.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use culvert_net::listen::{ListenOptions, Listener};
use culvert_observe::Leg;

use super::Mode;
use crate::lobby::{LOBBY_MAX, Lobby};
use crate::plane::Plane;

/// An address that could not be had is tried again this often.
const RETRY: Duration = Duration::from_secs(2);

/// A listener of routes, as all threads share it.
pub struct RoutePort {
    /// Where it listens, as the routes say.
    pub at: SocketAddr,
    /// What it does with whom it accepts.
    pub mode: Mode,
    /// Who has not shown a server name yet.
    pub lobby: Arc<Lobby>,
    /// Connections now.
    pub connections: Arc<AtomicUsize>,
    /// Turns true when no route wants it any more.
    pub closing: watch::Receiver<bool>,
}

/// The session threads, which accept.
#[derive(Default)]
pub struct Threads(Mutex<Vec<mpsc::UnboundedSender<Handed>>>);

/// What a thread is told to accept on.
pub type Handed = (Arc<RoutePort>, Listener);

impl Threads {
    /// A thread that accepts on what it is sent.
    pub fn join(&self) -> mpsc::UnboundedReceiver<Handed> {
        let (send, receive) = mpsc::unbounded_channel();
        self.0.lock().push(send);
        receive
    }

    fn hand_out(&self, port: &Arc<RoutePort>, listener: &Listener) -> io::Result<()> {
        for thread in &*self.0.lock() {
            let _ = thread.send((port.clone(), listener.try_clone()?));
        }
        Ok(())
    }
}

/// Binds and closes as the table says, until new clients are refused.
pub async fn run(plane: &Arc<Plane>) {
    let mut changes = plane.table_changes();
    let mut follower = Follower {
        plane,
        bound: HashMap::new(),
        failed: HashMap::new(),
    };
    loop {
        changes.mark_unchanged();
        follower.follow();
        let retry = follower.retry();
        tokio::select! {
            _ = changes.changed() => {}
            () = retry => {}
            () = plane.refusing() => break,
        }
    }
    drop(follower);
    std::future::pending::<()>().await;
}

struct Follower<'a> {
    plane: &'a Arc<Plane>,
    bound: HashMap<SocketAddr, (Mode, watch::Sender<bool>)>,
    /// What could not be bound, and why: said once.
    failed: HashMap<SocketAddr, String>,
}

impl Follower<'_> {
    fn follow(&mut self) {
        let table = self.plane.table.load_full();
        let wanted = table.routes.listeners();
        self.bound.retain(|at, (mode, closing)| {
            let stays = wanted.get(at) == Some(mode);
            if !stays {
                closing.send_replace(true);
                tracing::info!(%at, "no route wants this listener any more: closed");
            }
            stays
        });
        self.failed.retain(|at, _| wanted.contains_key(at));
        for (at, mode) in wanted {
            if !self.bound.contains_key(&at) {
                self.bind(at, mode);
            }
        }
        let metrics = &self.plane.metrics.flows;
        for (state, count) in [("bound", self.bound.len()), ("failed", self.failed.len())] {
            let gauge = metrics.listeners.with_label_values(&[state]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    fn bind(&mut self, at: SocketAddr, mode: Mode) {
        // One process owns an address: its successor waits for it.
        let options = ListenOptions {
            reuse_port: false,
            ..ListenOptions::default()
        };
        let (closing, closed) = watch::channel(false);
        let places = self.plane.connections_max / 2;
        let port = Arc::new(RoutePort {
            at,
            mode,
            lobby: Lobby::new(
                places.min(LOBBY_MAX),
                self.plane.metrics.handshakes_waiting.clone(),
            ),
            connections: Arc::default(),
            closing: closed,
        });
        let observer = &self.plane.metrics.sight.observer;
        let bound =
            Listener::bind_told(at, options, |socket| observer.listener(socket, Leg::Client))
                .and_then(|listener| self.plane.route_threads.hand_out(&port, &listener));
        match bound {
            Ok(()) => {
                tracing::info!(%at, ?mode, "listening for a route");
                self.failed.remove(&at);
                self.bound.insert(at, (mode, closing));
            }
            Err(why) => {
                closing.send_replace(true);
                if self.failed.insert(at, why.to_string()).is_none() {
                    tracing::warn!(%at, %why, "a route's address cannot be had; tried again every 2 s");
                }
            }
        }
    }

    async fn retry(&self) {
        match self.failed.is_empty() {
            true => std::future::pending().await,
            false => tokio::time::sleep(RETRY).await,
        }
    }
}

impl Drop for Follower<'_> {
    /// The addresses are free for a successor.
    fn drop(&mut self) {
        for (_, closing) in self.bound.values() {
            closing.send_replace(true);
        }
    }
}
