//! A dialled connection whose layers are still known, so that a plain one can be spliced.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::url::HubUrl;
use crate::tls::{ClientStream, ClientTls, TlsError, TlsInfo};
use crate::transport::Transport;

/// The bytes of a connection.
pub enum Link<IO> {
    /// The connection itself: it can be spliced.
    Plain(IO),
    /// TLS on it.
    Tls(Box<ClientStream<IO>>),
    /// Layers that nobody looks into: a proxy that speaks TLS itself.
    Boxed(Box<dyn Transport>),
}

/// A [`Link`] and where it leads.
pub struct Linked<IO = TcpStream> {
    /// Its bytes.
    pub link: Link<IO>,
    /// Which of the given URLs it leads to.
    pub url_index: usize,
    /// The address of the TCP connection: the hub's, or the proxy's.
    pub peer: SocketAddr,
    /// The proxy it goes through, without credentials.
    pub proxy: Option<String>,
    /// What TLS agreed on.
    pub tls: Option<TlsInfo>,
}

/// What lies on a connection to a hub.
#[derive(Clone, Copy)]
pub(super) enum Secure<'a> {
    /// Nothing.
    No,
    /// TLS with the configured protocols.
    Configured,
    /// TLS that offers this protocol alone.
    Alpn(&'a [u8]),
}

impl Secure<'_> {
    /// As the scheme says.
    pub(super) fn of(url: &HubUrl) -> Self {
        if url.is_tls() {
            Self::Configured
        } else {
            Self::No
        }
    }

    pub(super) fn is_tls(self) -> bool {
        !matches!(self, Self::No)
    }

    pub(super) async fn handshake<IO: Transport>(
        self,
        tls: &ClientTls,
        host: &str,
        io: IO,
    ) -> Result<ClientStream<IO>, TlsError> {
        match self {
            Self::No | Self::Configured => tls.connect(host, io).await,
            Self::Alpn(protocol) => tls.connect_alpn(host, protocol, io).await,
        }
    }
}

impl<IO: Transport> Link<IO> {
    /// What a proxy was passed with, if it lies open again; else whatever it is.
    pub(super) fn unboxed(io: Box<dyn Transport>) -> Result<IO, Box<dyn Transport>> {
        let what: &dyn Any = &*io;
        if !what.is::<IO>() {
            return Err(io);
        }
        let io: Box<dyn Any> = io;
        Ok(*io.downcast().expect("its type was asked for above"))
    }

    /// The same without its type.
    #[must_use]
    pub fn boxed(self) -> Box<dyn Transport> {
        match self {
            Self::Plain(io) => Box::new(io),
            Self::Tls(io) => io,
            Self::Boxed(io) => io,
        }
    }

    /// What the TLS or the proxy lies on, where it can be seen.
    #[must_use]
    pub fn bottom(&self) -> Option<&IO> {
        match self {
            Self::Plain(io) => Some(io),
            Self::Tls(tls) => Some(tls.get_ref().0.get_ref()),
            Self::Boxed(_) => None,
        }
    }
}

impl<IO: Transport> AsyncRead for Link<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
            Self::Boxed(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl<IO: Transport> AsyncWrite for Link<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, data),
            Self::Tls(io) => Pin::new(io).poll_write(cx, data),
            Self::Boxed(io) => Pin::new(io).poll_write(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
            Self::Boxed(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
            Self::Boxed(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
