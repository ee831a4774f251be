//! Accepted connections of the link, checked before a byte of gRPC is read.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use culvert_net::listen::Acceptor;
use culvert_net::tls::ServerTls;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::address::PeerCheck;
use crate::server::DATAPLANES_MAX;

/// Connections accepted and not yet taken by the server.
const ACCEPTED_MAX: usize = 16;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where data planes come in, and how they prove who they are.
pub enum Access {
    /// A Unix socket: the peer's uid is checked.
    Unix {
        /// From [`bind_unix`].
        listener: UnixListener,
        /// Which uids may connect.
        check: PeerCheck,
    },
    /// TCP: a client certificate is required. The configuration's ALPN is `h2`.
    Tls {
        /// From `culvert_net::listen`.
        listener: Acceptor,
        /// Its `client_auth` has to be required.
        tls: Arc<ServerTls>,
    },
}

/// Who is at the other end, for people.
#[derive(Clone, Debug)]
pub(crate) struct LinkInfo {
    pub(crate) peer: Arc<str>,
}

/// Binds a Unix socket of the given mode. A socket that a dead process left
/// behind is replaced, one that answers is not.
///
/// # Errors
/// When another process serves the socket, or the directory cannot be written.
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let said = format!("{} is served by another process", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, said));
        }
        Err(why) if why.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    // Under its final name only once its mode is right.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Connections that passed the check.
pub(crate) fn incoming(access: Access) -> ReceiverStream<io::Result<LinkIo>> {
    let (accepted, stream) = mpsc::channel(ACCEPTED_MAX);
    tokio::spawn(async move {
        let closed = accepted.clone();
        tokio::select! {
            () = accept_all(access, accepted) => {}
            () = closed.closed() => {}
        }
    });
    ReceiverStream::new(stream)
}

type Accepted = mpsc::Sender<io::Result<LinkIo>>;

async fn accept_all(access: Access, accepted: Accepted) {
    let slots = Arc::new(Semaphore::new(DATAPLANES_MAX));
    while let Ok(slot) = slots.clone().acquire_owned().await {
        match &access {
            Access::Unix { listener, check } => unix(listener, *check, slot, &accepted).await,
            Access::Tls { listener, tls } => {
                let (stream, peer) = listener.accept().await;
                tokio::spawn(handshake(tls.clone(), stream, peer, slot, accepted.clone()));
            }
        }
    }
}

async fn unix(
    listener: &UnixListener,
    check: PeerCheck,
    slot: OwnedSemaphorePermit,
    accepted: &Accepted,
) {
    let stream = match listener.accept().await {
        Ok((stream, _)) => stream,
        Err(why) => {
            tracing::warn!(%why, "state socket cannot accept; trying again");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            return;
        }
    };
    if let Err(why) = check.check(&stream) {
        tracing::warn!(%why, "state link refused");
        return;
    }
    let pid = stream
        .peer_cred()
        .ok()
        .and_then(|cred| cred.pid())
        .unwrap_or_default();
    let peer = format!("unix pid {pid}").into();
    let io = LinkIo {
        io: Box::new(stream),
        info: LinkInfo { peer },
        _slot: slot,
    };
    let _ = accepted.send(Ok(io)).await;
}

async fn handshake(
    tls: Arc<ServerTls>,
    stream: tokio::net::TcpStream,
    peer: std::net::SocketAddr,
    slot: OwnedSemaphorePermit,
    accepted: Accepted,
) {
    let stream = match tls.accept(stream).await {
        Ok(stream) => stream,
        Err(why) => return tracing::debug!(%why, %peer, "state link refused in the handshake"),
    };
    if ServerTls::info(&stream).peer_certificates.is_empty() {
        return tracing::warn!(%peer, "state link refused: no client certificate");
    }
    let peer = format!("tls {peer}").into();
    let io = LinkIo {
        io: Box::new(stream),
        info: LinkInfo { peer },
        _slot: slot,
    };
    let _ = accepted.send(Ok(io)).await;
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that passed the check; it holds its slot until it ends.
pub(crate) struct LinkIo {
    io: Box<dyn Io>,
    info: LinkInfo,
    _slot: OwnedSemaphorePermit,
}

impl Connected for LinkIo {
    type ConnectInfo = LinkInfo;
    fn connect_info(&self) -> LinkInfo {
        self.info.clone()
    }
}

impl AsyncRead for LinkIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

culvert_net::write_through!([] LinkIo, io);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind_unix(&path, 0o600).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            bind_unix(&path, 0o600).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(first);
        bind_unix(&path, 0o600).unwrap();
    }
}
