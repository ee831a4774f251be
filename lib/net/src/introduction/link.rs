//! What an introduction leaves to its side.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::relay::End;
use crate::tls::ClientStream;

/// A connection whose bytes are the other side's.
pub enum Link<IO> {
    /// The socket itself; the next byte read is the first of the other side.
    Plain(IO),
    /// Still inside the outer TLS.
    Kept(Box<ClientStream<IO>>),
}

impl<IO> Link<IO> {
    /// The socket, unless TLS still lies on it.
    ///
    /// # Errors
    /// The link itself, when it does.
    pub fn into_plain(self) -> Result<IO, Self> {
        match self {
            Link::Plain(io) => Ok(io),
            kept @ Link::Kept(_) => Err(kept),
        }
    }
}

impl<IO: End> End for Link<IO> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Link::Plain(io) => io.socket(),
            Link::Kept(stream) => stream.get_ref().0.get_ref().socket(),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Link<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Link::Kept(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Link<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Plain(io) => Pin::new(io).poll_write(cx, data),
            Link::Kept(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Plain(io) => Pin::new(io).poll_write_vectored(cx, data),
            Link::Kept(stream) => Pin::new(stream).poll_write_vectored(cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Link::Plain(io) => io.is_write_vectored(),
            Link::Kept(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(io) => Pin::new(io).poll_flush(cx),
            Link::Kept(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Link::Kept(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
