//! Connections that bridges dialled to this broker and that nobody uses yet.
//!
//! Whoever can reach the listener can fill it. So each source has a share, and who takes a
//! connection shakes hands on several at once: a stranger's costs a try, not the wait for it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use culvert_net::introduction::Link;
use culvert_net::listen::Acceptor;
use culvert_net::tls::pair::{PairTls, PairTlsError};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::Joined;
use crate::metrics::{AgentMetrics, PairStep};

/// Connections that wait to be used.
pub const WAITING_MAX: usize = 256;
/// Of one address.
pub const SOURCE_WAITING_MAX: usize = 32;
/// Handshakes on waiting connections at once, by one who needs a pair.
const RACED_MAX: usize = 8;
/// From the start of one handshake to that of the next.
const STAGGER: Duration = Duration::from_millis(250);

/// The waiting connections of mode reverse.
pub(super) struct Pool {
    waiting: Mutex<VecDeque<(IpAddr, TcpStream)>>,
    came: Notify,
    metrics: Arc<AgentMetrics>,
}

impl Pool {
    pub(super) fn new(metrics: Arc<AgentMetrics>) -> Pool {
        Pool {
            waiting: Mutex::default(),
            came: Notify::new(),
            metrics,
        }
    }

    /// Takes in what bridges dial, until dropped.
    pub(super) async fn fill(&self, acceptor: Acceptor) {
        loop {
            let (tcp, from) = acceptor.accept().await;
            self.put(tcp, from);
        }
    }

    fn put(&self, tcp: TcpStream, from: SocketAddr) {
        let source = from.ip().to_canonical();
        let mut waiting = self.waiting.lock();
        waiting.retain(|(_, tcp)| is_silent(tcp));
        let of_source = waiting.iter().filter(|(of, _)| *of == source).count();
        if of_source >= SOURCE_WAITING_MAX {
            tracing::debug!(%from, SOURCE_WAITING_MAX, "too many waiting connections of one source; the newest is ended");
            return;
        }
        if waiting.len() >= WAITING_MAX {
            waiting.pop_front();
        }
        waiting.push_back((source, tcp));
        drop(waiting);
        self.came.notify_one();
    }

    async fn take(&self) -> TcpStream {
        loop {
            let came = self.came.notified();
            if let Some(tcp) = self.next() {
                return tcp;
            }
            came.await;
        }
    }

    fn next(&self) -> Option<TcpStream> {
        let mut waiting = self.waiting.lock();
        while let Some((_, tcp)) = waiting.pop_front() {
            if is_silent(&tcp) {
                if !waiting.is_empty() {
                    // Somebody else may wait.
                    self.came.notify_one();
                }
                return Some(tcp);
            }
        }
        None
    }

    /// The first waiting connection at whose end is our bridge. Tries until there is one; `seen`
    /// hears of each that was none.
    pub(super) async fn join(&self, tls: &PairTls, mut seen: impl FnMut(&PairTlsError)) -> Joined {
        let mut running = FuturesUnordered::new();
        loop {
            let (first, room) = (running.is_empty(), running.len() < RACED_MAX);
            let more = async {
                if !first {
                    sleep(STAGGER).await;
                }
                self.take().await
            };
            tokio::select! {
                Some(joined) = running.next(), if !first => match joined {
                    Ok(joined) => return joined,
                    Err(why) => {
                        self.metrics.pair().failed(PairStep::Handshake);
                        seen(&why);
                    }
                },
                tcp = more, if room => running.push(tls.handshake(Link::Plain(tcp))),
            }
        }
    }
}

/// A bridge says nothing before it is spoken to: one that did, or ended, is of no use.
fn is_silent(tcp: &TcpStream) -> bool {
    matches!(tcp.try_read(&mut [0]), Err(why) if why.kind() == std::io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    async fn dialled(listener: &TcpListener) -> (TcpStream, TcpStream, SocketAddr) {
        let far = TcpStream::connect(listener.local_addr().unwrap());
        let (far, near) = tokio::join!(far, listener.accept());
        let (near, from) = near.unwrap();
        (far.unwrap(), near, from)
    }

    #[tokio::test]
    async fn a_source_has_its_share_and_what_spoke_or_ended_is_not_used() {
        let pool = Pool::new(Arc::new(AgentMetrics::new("")));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut hasty, near, from) = dialled(&listener).await;
        hasty.write_all(b"hello").await.unwrap();
        near.readable().await.unwrap();
        pool.put(near, from);
        let (gone, near, from) = dialled(&listener).await;
        drop(gone);
        near.readable().await.unwrap();
        pool.put(near, from);
        assert!(pool.next().is_none(), "neither is of use");
        let mut held = Vec::new();
        for _ in 0..SOURCE_WAITING_MAX + 5 {
            let (far, near, from) = dialled(&listener).await;
            held.push(far);
            pool.put(near, from);
        }
        let waiting = std::iter::from_fn(|| pool.next()).count();
        assert_eq!(waiting, SOURCE_WAITING_MAX);
    }
}
