//! One new connection to the target: resolve, check each address, connect to
//! the checked one, TLS.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use culvert_net::relay::End;
use culvert_net::socket;
use culvert_net::tls::{ClientStream, ClientTls};
use culvert_proto::close::CloseReason;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::allow::AllowList;
use super::resolve::Resolve;
use crate::serve::answer::Failure;
use crate::target::Target;

/// Longest wait for one address, name lookup and TLS handshake each.
pub const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// Between the starts of two connection attempts.
pub const STAGGER: Duration = Duration::from_millis(250);
/// Longest wait for a connection in all; the hub answers 504 at 30 s.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(25);

/// Dials the one target.
pub struct Dialer {
    target: Arc<Target>,
    allow: AllowList,
    resolver: Arc<dyn Resolve>,
    tls: Option<Arc<ClientTls>>,
}

impl Dialer {
    /// A dialer of `target`; `tls` when the target speaks it.
    #[must_use]
    pub fn new(
        target: Arc<Target>,
        allow: AllowList,
        resolver: Arc<dyn Resolve>,
        tls: Option<Arc<ClientTls>>,
    ) -> Self {
        Self {
            target,
            allow,
            resolver,
            tls,
        }
    }

    /// Connects within `limit`: addresses in the resolver's order, the next one [`STAGGER`] after
    /// the one before or as soon as that failed, and the first that answers is taken.
    ///
    /// # Errors
    /// What was seen of the last address tried.
    pub async fn dial(&self, limit: Duration) -> Result<TargetIo, Failure> {
        let end = Instant::now() + limit.min(DIAL_DEADLINE);
        let mut waiting = self.addresses(end).await?.into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut next_start = Instant::now();
        let mut last = None;
        loop {
            tokio::select! {
                biased;
                Some(result) = attempts.next(), if !attempts.is_empty() => match result {
                    Ok(connected) => return Ok(connected),
                    Err(why) => {
                        last = Some(why);
                        next_start = Instant::now();
                    }
                },
                () = sleep_until(next_start), if waiting.len() > 0 && Instant::now() < end => {
                    attempts.extend(waiting.next().map(|address| self.connect(address, end)));
                    next_start = Instant::now() + STAGGER;
                }
                else => break,
            }
        }
        Err(last.unwrap_or_else(|| self.failure(CloseReason::DialName, "has no address")))
    }

    /// The same without TLS, whatever was configured.
    ///
    /// # Errors
    /// As [`Dialer::dial`].
    pub async fn dial_plain(&self, limit: Duration) -> Result<TcpStream, Failure> {
        match self.dial(limit).await? {
            TargetIo::Plain(tcp) => Ok(tcp),
            TargetIo::Tls(_) => Err(self.failure(CloseReason::Internal, "speaks TLS by itself")),
        }
    }

    /// The addresses that may be dialled.
    async fn addresses(&self, end: Instant) -> Result<Vec<SocketAddr>, Failure> {
        let (host, port) = (self.target.host.as_str(), self.target.port);
        let found = match self.target.literal() {
            Some(ip) => vec![SocketAddr::new(ip, port)],
            None => match timeout_at(step(end), self.resolver.resolve(host, port)).await {
                Ok(Ok(found)) => found,
                Ok(Err(why)) => {
                    return Err(
                        self.failure(CloseReason::DialName, &format!("cannot be resolved: {why}"))
                    );
                }
                Err(_) => {
                    return Err(self.failure(CloseReason::DialName, "was not resolved in time"));
                }
            },
        };
        let mut refused = None;
        let mut allowed = Vec::with_capacity(found.len());
        for address in found {
            match self.allow.check(address.ip()) {
                Ok(()) => allowed.push(address),
                Err(why) => {
                    tracing::warn!(
                        target_host = host, address = %address.ip(), kind = why.as_str(),
                        "the target's name resolves to an address that is refused unless listed by --allow-address"
                    );
                    refused = Some((address.ip(), why));
                }
            }
        }
        match (allowed.is_empty(), refused) {
            (true, Some((ip, why))) => Err(self.failure(
                CloseReason::TargetNotAllowed,
                &format!(
                    "resolves to {ip}, {}; list it by --allow-address if it is meant",
                    why.as_str()
                ),
            )),
            _ => Ok(allowed),
        }
    }

    async fn connect(&self, address: SocketAddr, end: Instant) -> Result<TargetIo, Failure> {
        let tcp = match timeout_at(step(end), TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(why)) => {
                let reason = match why.kind() {
                    io::ErrorKind::ConnectionRefused => CloseReason::DialRefused,
                    io::ErrorKind::TimedOut => CloseReason::DialTimeout,
                    _ => CloseReason::DialUnreachable,
                };
                return Err(self.failure(reason, &format!("at {address}: {why}")));
            }
            Err(_) => {
                return Err(self.failure(
                    CloseReason::DialTimeout,
                    &format!("at {address} did not answer"),
                ));
            }
        };
        // The user timeout guards the set-up only: a target may pause its reading.
        let tuned = socket::set_leg_options(&tcp);
        let connected = match &self.tls {
            None => TargetIo::Plain(tcp),
            Some(tls) => self.handshake(tls, tcp, address, end).await?,
        };
        tuned
            .and_then(|()| socket::lift_user_timeout(connected.tcp()))
            .map_err(|why| {
                self.failure(
                    CloseReason::DialUnreachable,
                    &format!("at {address}: {why}"),
                )
            })?;
        Ok(connected)
    }

    async fn handshake(
        &self,
        tls: &ClientTls,
        tcp: TcpStream,
        address: SocketAddr,
        end: Instant,
    ) -> Result<TargetIo, Failure> {
        match timeout_at(step(end), tls.connect(&self.target.host, tcp)).await {
            Ok(Ok(tls)) => Ok(TargetIo::Tls(Box::new(tls))),
            Ok(Err(why)) => {
                Err(self.failure(CloseReason::TargetTls, &format!("at {address}: TLS: {why}")))
            }
            Err(_) => Err(self.failure(
                CloseReason::DialTimeout,
                &format!("at {address} did not finish its TLS handshake"),
            )),
        }
    }

    fn failure(&self, reason: CloseReason, what: &str) -> Failure {
        Failure::new(reason, format!("target {} {what}", self.target.address()))
    }
}

fn step(end: Instant) -> Instant {
    end.min(Instant::now() + STEP_DEADLINE)
}

/// A connection to the target.
pub enum TargetIo {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS over TCP.
    Tls(Box<ClientStream<TcpStream>>),
}

impl TargetIo {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0.get_ref(),
        }
    }
}

impl End for TargetIo {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tcp().as_fd())
    }
}

impl AsyncRead for TargetIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for TargetIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
