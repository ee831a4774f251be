//! Listening sockets: several accepting threads on one address, a reserve descriptor, no spin on EMFILE.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

pub use crate::socket::lift_user_timeout;
use crate::socket::{CARRIER_UNSENT_BYTES_MAX, set_leg_options};

/// Pause after the process ran out of descriptors (F11).
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections the kernel may hold for us; it lowers this to `net.core.somaxconn`.
pub const BACKLOG_MAX: i32 = 4096;

/// Milliseconds this process spent in pauses because it had no descriptor left.
static PAUSED_MS: AtomicU64 = AtomicU64::new(0);

/// Seconds spent in accept pauses so far, for `culvert_accept_paused_seconds_total`.
#[must_use]
pub fn accept_paused() -> Duration {
    Duration::from_millis(PAUSED_MS.load(Ordering::Relaxed))
}

/// How a listener is made.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Lets several sockets share the address; [`Listener::try_clone`] needs it.
    pub reuse_port: bool,
    /// Accepted sockets carry `TCP_NOTSENT_LOWAT` 128 KiB: for listeners that agents dial.
    pub carrier: bool,
    /// Connections waiting for `accept`, 1..=[`BACKLOG_MAX`].
    pub backlog: i32,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions {
            reuse_port: true,
            carrier: false,
            backlog: BACKLOG_MAX,
        }
    }
}

/// A bound socket. It may be bound before a runtime exists, which start-up checks need.
pub struct Listener {
    socket: StdListener,
    options: ListenOptions,
}

impl Listener {
    /// Binds `addr`. Accepted sockets have NODELAY, keepalive 15/5/3, user timeout 15 s.
    ///
    /// # Errors
    /// When the address is taken or not ours; the text names the address.
    pub fn bind(addr: SocketAddr, options: ListenOptions) -> io::Result<Listener> {
        bind(addr, options)
            .map(|socket| Listener { socket, options })
            .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {addr}: {e}")))
    }

    /// The bound address, with the port the kernel chose for port 0.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// A second descriptor of the same socket, for another accepting thread. All share one accept
    /// queue: the kernel's own spreading over several sockets is uneven (performance.md 2.1), and a
    /// socket that nobody accepts on would reset what was queued for it.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Listener> {
        let socket = self.socket.try_clone()?;
        Ok(Listener {
            socket,
            options: self.options,
        })
    }

    /// Hands the socket to the runtime of the calling thread.
    ///
    /// # Errors
    /// When the runtime cannot register it, or no reserve descriptor is left.
    pub fn start(self) -> io::Result<Acceptor> {
        let reserve = Mutex::new(Some(File::open("/dev/null")?));
        Ok(Acceptor {
            listener: TcpListener::from_std(self.socket)?,
            reserve,
        })
    }
}

/// Accepts connections on the runtime it was started on.
pub struct Acceptor {
    listener: TcpListener,
    /// Given up for an instant when descriptors run out, so that a waiting client is told at once.
    reserve: Mutex<Option<File>>,
}

impl Acceptor {
    /// The bound address.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection. Cancel safe. Errors of one connection are skipped; running out of
    /// descriptors closes the waiting connection and pauses 100 ms, so this never spins.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                // An aborted peer fails here; it costs only itself.
                Ok((stream, peer)) if set_leg_options(&stream).is_ok() => return (stream, peer),
                Ok(_) => {}
                Err(error) if is_exhausted(&error) => self.shed(&error).await,
                Err(error) => tracing::debug!(%error, "a connection ended before it was accepted"),
            }
        }
    }

    async fn shed(&self, error: &io::Error) {
        drop(self.reserve.lock().take());
        // Non-blocking: it closes the oldest waiting connection, or finds none.
        if let Ok((socket, _)) = SockRef::from(&self.listener).accept() {
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
        *self.reserve.lock() = File::open("/dev/null").ok();
        tracing::warn!(%error, pause_ms = 100, "out of descriptors: accepting is paused; raise LimitNOFILE");
        tokio::time::sleep(ACCEPT_PAUSE).await;
        PAUSED_MS.fetch_add(100, Ordering::Relaxed);
    }
}

fn bind(addr: SocketAddr, options: ListenOptions) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(options.reuse_port)?;
    socket.set_nonblocking(true)?;
    if options.carrier {
        // Inherited by every accepted socket; so is keepalive, from before TLS.
        socket.set_tcp_notsent_lowat(CARRIER_UNSENT_BYTES_MAX)?;
    }
    set_leg_options(&socket)?;
    socket.bind(&addr.into())?;
    socket.listen(options.backlog.clamp(1, BACKLOG_MAX))?;
    Ok(socket.into())
}

fn is_exhausted(error: &io::Error) -> bool {
    let raw = error.raw_os_error();
    [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM]
        .iter()
        .any(|e| raw == Some(*e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[tokio::test]
    async fn accepted_sockets_carry_the_options() {
        let options = ListenOptions {
            carrier: true,
            ..ListenOptions::default()
        };
        let listener = Listener::bind(loopback(), options).unwrap();
        let addr = listener.local_addr().unwrap();
        let acceptor = listener.start().unwrap();
        let _client = TcpStream::connect(addr).await.unwrap();
        let (stream, _) = acceptor.accept().await;
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(15)
        );
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(5)
        );
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(Duration::from_secs(15))
        );
        assert_eq!(
            socket.tcp_notsent_lowat().unwrap(),
            CARRIER_UNSENT_BYTES_MAX
        );
        lift_user_timeout(&stream).unwrap();
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }

    #[tokio::test]
    async fn clones_share_the_address() {
        let first = Listener::bind(loopback(), ListenOptions::default()).unwrap();
        let second = first.try_clone().unwrap();
        assert_eq!(first.local_addr().unwrap(), second.local_addr().unwrap());
        let addr = first.local_addr().unwrap();
        let (first, second) = (first.start().unwrap(), second.start().unwrap());
        let (mut by_first, mut by_second) = (0, 0);
        for _ in 0..64 {
            let _client = TcpStream::connect(addr).await.unwrap();
            tokio::select! {
                _ = first.accept() => by_first += 1,
                _ = second.accept() => by_second += 1,
            }
        }
        assert_eq!(by_first + by_second, 64);
        assert!(by_first > 0 && by_second > 0, "{by_first} and {by_second}");
    }

    #[test]
    fn a_taken_address_is_named() {
        let exclusive = ListenOptions {
            reuse_port: false,
            ..ListenOptions::default()
        };
        let first = Listener::bind(loopback(), exclusive).unwrap();
        let addr = first.local_addr().unwrap();
        let error = Listener::bind(addr, exclusive).err().unwrap();
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }
}
