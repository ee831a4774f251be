//! A relay for tests: the real introduction, matched in memory, copied.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use culvert_net::introduction::{Door, Guest, OuterServer, Settled, receive};
use culvert_net::tls::dev::DevCa;
use culvert_net::transport::Transport;
use culvert_proto::pair::ReplyCode;
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};

/// What runs in it.
struct Inner {
    outer: OuterServer,
    waiting: Mutex<Vec<Guest<TcpStream>>>,
    pairs: AtomicUsize,
    connections: AtomicUsize,
    running: Mutex<Vec<AbortHandle>>,
}

pub struct Relay {
    pub addr: SocketAddr,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

/// TLS of a relay called localhost, whose CA is `relay-ca.crt` in `dir`.
pub fn outer_tls(dir: &Path, keep: bool) -> OuterServer {
    let ca = DevCa::new("the relay's").unwrap();
    std::fs::write(dir.join("relay-ca.crt"), ca.pem()).unwrap();
    let cert = ca.server(&["localhost"]).unwrap();
    let (cert, key) = cert.write(dir, "relay").unwrap();
    let tls = Arc::new(OuterServer::tls(cert, key).unwrap());
    OuterServer::Tls { tls, keep }
}

impl Relay {
    pub async fn start(addr: SocketAddr, outer: OuterServer) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            outer,
            waiting: Mutex::default(),
            pairs: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            running: Mutex::default(),
        });
        let serving = inner.clone();
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let inner = serving.clone();
                inner.connections.fetch_add(1, Ordering::SeqCst);
                let one = tokio::spawn(async move { inner.serve(tcp).await });
                serving.running.lock().push(one.abort_handle());
            }
        });
        Self { addr, inner, task }
    }

    /// Pairs matched so far.
    pub fn pairs(&self) -> usize {
        self.inner.pairs.load(Ordering::SeqCst)
    }

    /// Connections taken so far.
    pub fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// Sides that wait.
    pub fn waiting(&self) -> usize {
        let mut waiting = self.inner.waiting.lock();
        waiting.retain_mut(|guest| guest.waiter.disturbance().now_or_never().is_none());
        waiting.len()
    }

    /// Ends it as a crash would.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        for one in self.inner.running.lock().drain(..) {
            one.abort();
        }
        self.inner.waiting.lock().clear();
    }
}

impl Inner {
    async fn serve(&self, tcp: TcpStream) {
        let door = Door {
            accepts_open: false,
            closed: None,
        };
        let Ok(mut guest) = receive(tcp, &self.outer, door).await else {
            return;
        };
        guest.waiter.say(ReplyCode::Wait.into()).await.unwrap();
        let other = {
            let mut waiting = self.waiting.lock();
            waiting.retain_mut(|guest| guest.waiter.disturbance().now_or_never().is_none());
            let fits = |other: &Guest<TcpStream>| {
                (other.proof, other.id, other.role) == (guest.proof, guest.id, guest.role.other())
            };
            match waiting.iter().position(fits) {
                Some(place) => waiting.remove(place),
                None => return waiting.push(guest),
            }
        };
        self.pairs.fetch_add(1, Ordering::SeqCst);
        let one = guest.waiter.matched().await;
        let other = other.waiter.matched().await;
        if let (Ok(one), Ok(other)) = (one, other) {
            let (mut one, mut other) = (bytes(one), bytes(other));
            let _ = tokio::io::copy_bidirectional(&mut one, &mut other).await;
        }
    }
}

fn bytes(settled: Settled<TcpStream>) -> Box<dyn Transport> {
    match settled {
        Settled::Plain(tcp) => Box::new(tcp),
        Settled::Kept(tls) => tls,
    }
}
