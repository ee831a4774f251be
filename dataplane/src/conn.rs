//! One accepted client socket: deadlines between requests, and honest ends.
//!
//! Sits under TLS and hyper. hyper knows one timeout for an idle connection and
//! for a slow head; here they are two. And a close that must not look like a
//! complete answer becomes RST (`SO_LINGER {1,0}`).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use culvert_enrol::{AgentCertificate, CertificateFault};
use culvert_net::hangup::Hangup;
use culvert_net::listen::lift_user_timeout;
use culvert_net::relay::{End, Vigil};
use culvert_proto::close::CloseReason;
use culvert_proto::limits::{CLIENT_IDLE_TIMEOUT_MS, HEAD_TIMEOUT_MS};

use crate::lobby::Guest;
use crate::observe::Watched;
use crate::observe::socket::Identity;

/// What the socket, the requests on it and their bodies tell each other.
#[derive(Default)]
pub struct ConnState {
    in_flight: AtomicU32,
    served: AtomicU32,
    multiplexed: AtomicBool,
    certified: AtomicBool,
    certificate: OnceLock<Result<AgentCertificate, CertificateFault>>,
    lift: AtomicBool,
    arm: AtomicBool,
    dead: AtomicBool,
    hangup: Hangup,
    guest: Mutex<Option<Guest>>,
    /// What the connection turned out to be; the socket's own is older while this
    /// is set.
    identified: AtomicBool,
    identity: Mutex<Option<Identity>>,
}

impl ConnState {
    /// The state of a connection that came in through `guest`.
    pub fn new(guest: Guest) -> Arc<Self> {
        Arc::new(Self {
            guest: Mutex::new(Some(guest)),
            ..Self::default()
        })
    }

    /// The connection speaks h2: several requests at once, no head deadline.
    pub fn set_multiplexed(&self) {
        self.multiplexed.store(true, Ordering::Relaxed);
    }

    /// Whether TLS showed a client certificate.
    pub fn set_certified(&self, certified: bool) {
        self.certified.store(certified, Ordering::Relaxed);
    }

    /// Whether TLS showed a client certificate.
    pub fn is_certified(&self) -> bool {
        self.certified.load(Ordering::Relaxed)
    }

    /// The certificate of whoever came in by the listener of agents that show one.
    pub fn set_certificate(&self, read: Result<AgentCertificate, CertificateFault>) {
        // A connection has one handshake.
        let _ = self.certificate.set(read);
    }

    /// What that certificate says; `None` on every other listener.
    pub fn certificate(&self) -> Option<&Result<AgentCertificate, CertificateFault>> {
        self.certificate.get()
    }

    /// Ends the stay in the lobby: what came is enough.
    pub fn leave_lobby(&self) {
        drop(self.guest.lock().take());
    }

    /// A request head is complete. The first one ends the stay in the lobby.
    pub fn request_begins(self: &Arc<Self>) -> InFlight {
        if self.served.load(Ordering::Relaxed) == 0 {
            self.leave_lobby();
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.served.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Whether a request is being served.
    pub fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0
    }

    /// The connection turned out to be this: from the next write on it is counted
    /// and tagged so.
    pub fn identify(&self, identity: Identity) {
        let mut known = self.identity.lock();
        if known.as_ref() != Some(&identity) {
            *known = Some(identity);
            self.identified.store(true, Ordering::Release);
        }
    }

    /// From the next write on a close without [`disarm`](Self::disarm) is RST,
    /// also when this process dies.
    pub fn arm(&self) {
        self.arm.store(true, Ordering::Relaxed);
    }

    /// Everything was relayed: the close may be FIN.
    pub fn disarm(&self) {
        self.arm.store(false, Ordering::Relaxed);
    }

    /// The close has to be RST: an answer was cut.
    pub fn abort(&self) {
        self.hangup.demand();
    }

    /// Why a relay to this client broke off.
    pub fn broke(&self) -> CloseReason {
        match self.dead.load(Ordering::Relaxed) {
            true => CloseReason::ClientDead,
            false => CloseReason::ClientReset,
        }
    }

    /// The same order, for a carrier on this connection.
    pub fn hangup(&self) -> Hangup {
        self.hangup.clone()
    }

    /// Relaying starts: a client that pauses is alive (security.md 3.4).
    pub fn relaying(&self) {
        self.lift.store(true, Ordering::Relaxed);
    }
}

/// A request in flight on its connection.
pub struct InFlight(Arc<ConnState>);

impl InFlight {
    /// The connection.
    pub fn conn(&self) -> &Arc<ConnState> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client's TCP socket.
pub struct ClientSocket {
    stream: TcpStream,
    /// Read before anything else: what was looked at to see who comes.
    prefix: Bytes,
    state: Arc<ConnState>,
    /// Which wait for a head this is, when it began, whether bytes have come.
    wait: (u32, Instant, bool),
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
    vigil: Option<Vigil>,
    lifted: bool,
    watched: Watched,
}

impl ClientSocket {
    /// Wraps an accepted socket whose first byte has come; `prefix` was read from it.
    pub fn new(stream: TcpStream, prefix: Bytes, watched: Watched, state: Arc<ConnState>) -> Self {
        Self {
            stream,
            watched,
            prefix,
            state,
            wait: (0, Instant::now(), true),
            sleep: None,
            armed: false,
            vigil: None,
            lifted: false,
        }
    }

    fn refresh_wait(&mut self) {
        let served = self.state.served.load(Ordering::Relaxed);
        if self.wait.0 != served {
            self.wait = (served, Instant::now(), false);
        }
    }

    fn bytes_came(&mut self) {
        if self.state.is_busy() {
            return;
        }
        self.refresh_wait();
        let multiplexed = self.state.multiplexed.load(Ordering::Relaxed);
        if multiplexed {
            self.wait.1 = Instant::now();
            self.wait.2 = false;
        } else if !self.wait.2 {
            self.wait.1 = Instant::now();
            self.wait.2 = true;
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.state.is_busy() {
            return Ok(());
        }
        self.refresh_wait();
        let (_, since, got_bytes) = self.wait;
        let head = got_bytes && !self.state.multiplexed.load(Ordering::Relaxed);
        let allowed = if head {
            HEAD_TIMEOUT_MS
        } else {
            CLIENT_IDLE_TIMEOUT_MS
        };
        let due = since + Duration::from_millis(allowed);
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if sleep.deadline() > due {
            sleep.as_mut().reset(due);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                let what = if head {
                    "slow request head"
                } else {
                    "idle connection"
                };
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            sleep.as_mut().reset(due);
        }
        Ok(())
    }

    /// Applies what the requests asked for to the socket.
    fn before_write(&mut self) {
        if self.state.identified.swap(false, Ordering::Acquire)
            && let Some(identity) = &*self.state.identity.lock()
        {
            self.watched.becomes(self.stream.as_fd(), identity);
        }
        if !self.lifted && self.state.lift.load(Ordering::Relaxed) {
            self.lifted = true;
            match lift_user_timeout(&self.stream) {
                Ok(()) => self.vigil = Some(Vigil::new(Some(self.stream.as_fd()))),
                Err(why) => tracing::debug!(%why, "the user timeout of a client socket stays"),
            }
        }
        if !self.armed && self.state.arm.load(Ordering::Relaxed) {
            self.armed = self.set_linger(Some(Duration::ZERO));
        }
    }

    /// What follows a write that `polled` tells of.
    fn after_write(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match &polled {
            Poll::Pending => self.poll_vigil(cx)?,
            Poll::Ready(Err(_)) => self.watched.ends(CloseReason::ClientReset),
            Poll::Ready(_) => {
                if let Some(vigil) = &mut self.vigil {
                    vigil.wrote();
                }
            }
        }
        polled
    }

    fn poll_vigil(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(vigil) = &mut self.vigil else {
            return Ok(());
        };
        vigil.poll(cx, Some(self.stream.as_fd())).inspect_err(|_| {
            self.state.dead.store(true, Ordering::Relaxed);
            self.state.abort();
        })
    }

    fn set_linger(&self, linger: Option<Duration>) -> bool {
        rustix::net::sockopt::set_socket_linger(&self.stream, linger).is_ok()
    }

    fn settle_linger(&mut self) {
        if self.state.hangup.is_demanded() {
            self.state.hangup.arm(&self.stream);
        } else if self.armed && !self.state.arm.load(Ordering::Relaxed) {
            self.armed = !self.set_linger(None);
        }
    }
}

impl End for ClientSocket {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.stream.as_fd())
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        self.settle_linger();
        if self.state.dead.load(Ordering::Relaxed) {
            self.watched.ends(CloseReason::ClientDead);
        }
        self.watched.sample(self.stream.as_fd());
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let bytes = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(bytes));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Pending => {
                self.poll_deadline(cx)
                    .inspect_err(|_| self.watched.ends(CloseReason::ClientIdle))?;
                self.poll_vigil(cx)?;
                let socket = &mut *self;
                socket.watched.sample_at_times(socket.stream.as_fd());
                Poll::Pending
            }
            Poll::Ready(Err(why)) => {
                self.watched.ends(CloseReason::ClientReset);
                Poll::Ready(Err(why))
            }
            ready => {
                if buf.filled().len() > before {
                    self.bytes_came();
                }
                ready
            }
        }
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.before_write();
        let polled = Pin::new(&mut self.stream).poll_write(cx, data);
        self.after_write(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.before_write();
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.after_write(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_vigil(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.settle_linger();
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}
