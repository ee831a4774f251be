//! Listening sockets: several accepting threads on one address, a reserve descriptor, no spin on EMFILE.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
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
        Self::bind_told(addr, options, |_| {})
    }

    /// The same; `bound` is shown the socket before anybody can connect to it.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn bind_told(
        addr: SocketAddr,
        options: ListenOptions,
        bound: impl FnOnce(BorrowedFd<'_>),
    ) -> io::Result<Listener> {
        bind(addr, options, bound)
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

/// How a connection's bytes get on (`TCP_INFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Segments sent and not acknowledged.
    pub segments_unacked: u32,
    /// Bytes written and not sent.
    pub bytes_unsent: u32,
    /// Bytes acknowledged so far.
    pub bytes_acked: u64,
    /// What the peer has room for; `u32::MAX` where the kernel does not say (before 5.4).
    pub window_bytes: u32,
    /// Age of the last acknowledgement, in ms.
    pub last_ack_ms: u32,
}

/// Reads how `socket`'s bytes get on.
///
/// # Errors
/// When it is no TCP socket.
pub fn progress(socket: &impl AsFd) -> io::Result<Progress> {
    let mut info = [0; TCP_INFO_BYTES as usize];
    let length = tcp_info(socket.as_fd(), &mut info)?;
    let (four, eight) = (|at| four(&info, at), |at| eight(&info, at));
    Ok(Progress {
        segments_unacked: four(24),
        last_ack_ms: four(56),
        bytes_acked: eight(120),
        bytes_unsent: four(144),
        window_bytes: if length < info.len() {
            u32::MAX
        } else {
            four(228)
        },
    })
}

/// What the kernel counted of one connection so far (`TCP_INFO`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Smoothed round trip, in us; 0 before the first.
    pub rtt_us: u32,
    /// The least round trip of the last minutes, in us.
    pub rtt_min_us: u32,
    /// Segments sent again.
    pub retransmitted: u32,
    /// Segments received.
    pub segments_in: u32,
    /// Segments sent.
    pub segments_out: u32,
    /// Payload received in order; FIN counts as one.
    pub bytes_received: u64,
    /// Payload acknowledged; SYN of the dialling side and FIN count as one each.
    pub bytes_acked: u64,
    /// Bytes written and not sent.
    pub bytes_unsent: u32,
    /// Time with something to send, in us.
    pub busy_us: u64,
    /// Of it, shut in by the peer's window.
    pub rwnd_us: u64,
    /// Of it, shut in by the send buffer.
    pub sndbuf_us: u64,
    /// FIN was received.
    pub is_half_closed: bool,
}

/// Reads what was counted of `socket`.
///
/// # Errors
/// When it is no TCP socket.
pub fn totals(socket: &impl AsFd) -> io::Result<Totals> {
    /// CLOSE_WAIT, LAST_ACK, CLOSING, TIME_WAIT.
    const FIN_CAME: [u8; 4] = [8, 9, 11, 6];
    let mut info = [0; TCP_INFO_BYTES as usize];
    tcp_info(socket.as_fd(), &mut info)?;
    let (four, eight) = (|at| four(&info, at), |at| eight(&info, at));
    Ok(Totals {
        rtt_us: four(68),
        rtt_min_us: Some(four(148)).filter(|us| *us != u32::MAX).unwrap_or(0),
        retransmitted: four(100),
        segments_out: four(136),
        segments_in: four(140),
        bytes_acked: eight(120),
        bytes_received: eight(128),
        bytes_unsent: four(144),
        busy_us: eight(168),
        rwnd_us: eight(176),
        sndbuf_us: eight(184),
        is_half_closed: FIN_CAME.contains(&info[0]),
    })
}

// Offsets of `struct tcp_info` in linux/tcp.h.
type Info = [u8; TCP_INFO_BYTES as usize];

fn four(info: &Info, at: usize) -> u32 {
    <[u8; 4]>::try_from(&info[at..at + 4]).map_or(0, u32::from_ne_bytes)
}

fn eight(info: &Info, at: usize) -> u64 {
    <[u8; 8]>::try_from(&info[at..at + 8]).map_or(0, u64::from_ne_bytes)
}

/// Bytes of `socket` that its peer has not acknowledged; FIN counts as one. After a reset it stays
/// what it was, so 0 behind a FIN proves that everything arrived.
///
/// # Errors
/// When it is no connection.
#[allow(unsafe_code, reason = "no crate of the tree asks SIOCOUTQ")]
pub fn unacknowledged(socket: &impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to `bytes`, which outlives the call.
    let failed = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::ioctl(fd, libc::TIOCOUTQ, &raw mut bytes)
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(bytes).unwrap_or(u32::MAX))
}

/// As much of `struct tcp_info`, which only grows at its end, as is read here.
const TCP_INFO_BYTES: libc::socklen_t = 232;

#[allow(unsafe_code, reason = "no crate of the tree reads TCP_INFO")]
fn tcp_info(socket: BorrowedFd<'_>, info: &mut [u8; TCP_INFO_BYTES as usize]) -> io::Result<usize> {
    let mut length = TCP_INFO_BYTES;
    // SAFETY: `info` is writable for `length` bytes, and both outlive the call.
    let failed = unsafe {
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        let to = info.as_mut_ptr().cast();
        libc::getsockopt(socket.as_raw_fd(), level, name, to, &raw mut length)
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(length as usize)
}

/// Retransmissions and probes of `socket` at most 5 s apart, so that a living peer is heard as often.
///
/// # Errors
/// When the kernel does not know the option (before 6.15).
#[allow(unsafe_code, reason = "no crate of the tree sets TCP_RTO_MAX_MS")]
pub fn bound_probes(socket: &impl AsFd) -> io::Result<()> {
    const TCP_RTO_MAX_MS: libc::c_int = 44;
    let value: [u8; 4] = 5_000_i32.to_ne_bytes();
    // SAFETY: `value` is readable for four bytes and outlives the call.
    let failed = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        let from = value.as_ptr().cast();
        libc::setsockopt(fd, libc::IPPROTO_TCP, TCP_RTO_MAX_MS, from, 4)
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn bind(
    addr: SocketAddr,
    options: ListenOptions,
    bound: impl FnOnce(BorrowedFd<'_>),
) -> io::Result<StdListener> {
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
    bound(socket.as_fd());
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
    async fn progress_tells_a_reader_that_pauses_from_one_that_reads() {
        use std::io::{Read as _, Write as _};
        let listener = StdListener::bind(loopback()).unwrap();
        let mut writer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut reader, _) = listener.accept().unwrap();
        writer.write_all(&[7; 1000]).unwrap();
        reader.read_exact(&mut [0; 1000]).unwrap();
        let read = progress(&writer).unwrap();
        assert_eq!(unacknowledged(&writer).unwrap(), 0);
        assert_eq!(
            (read.segments_unacked, read.bytes_unsent),
            (0, 0),
            "{read:?}"
        );
        assert!(
            read.bytes_acked >= 1000 && read.window_bytes > 0,
            "{read:?}"
        );
        assert!(read.last_ack_ms < 5_000, "{read:?}");
        writer.set_nonblocking(true).unwrap();
        let full = loop {
            if let Err(why) = writer.write(&[7; 65_536]) {
                break why;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let paused = progress(&writer).unwrap();
        let counted = totals(&writer).unwrap();
        assert!(
            counted.rtt_us > 0 && counted.segments_out > 1,
            "{counted:?}"
        );
        assert_eq!(totals(&reader).unwrap().retransmitted, 0);
        assert!(totals(&reader).unwrap().bytes_received >= 1000);
        assert!(paused.bytes_unsent > 0, "{paused:?}");
        assert!(paused.window_bytes < read.window_bytes, "{paused:?}");
        assert!(progress(&File::open("/dev/null").unwrap()).is_err());
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
