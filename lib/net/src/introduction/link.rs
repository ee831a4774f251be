//! What an introduction leaves: to a side its way to the other, to the relay one half of a pair.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::relay::End;
use crate::tls::{ClientStream, ServerStream};

/// A connection whose bytes are the other side's.
pub enum Matched<IO, TLS> {
    /// The socket itself; the next byte read is the first of the other side.
    Plain(IO),
    /// Still inside the outer TLS.
    Kept(Box<TLS>),
}

/// As a side has it.
pub type Link<IO> = Matched<IO, ClientStream<IO>>;

/// As the relay has it.
pub type Settled<IO> = Matched<IO, ServerStream<IO>>;

impl<IO, TLS> Matched<IO, TLS> {
    /// The socket, unless TLS still lies on it.
    ///
    /// # Errors
    /// The link itself, when it does.
    pub fn into_plain(self) -> Result<IO, Self> {
        match self {
            Matched::Plain(io) => Ok(io),
            kept @ Matched::Kept(_) => Err(kept),
        }
    }
}

/// Over TLS only `close_notify` is an end.
impl<E: End> End for ClientStream<E> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.get_ref().0.get_ref().socket()
    }
}

impl<IO: End, TLS: End> End for Matched<IO, TLS> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Matched::Plain(io) => io.socket(),
            Matched::Kept(stream) => stream.socket(),
        }
    }
}

impl<IO: AsyncRead + Unpin, TLS: AsyncRead + Unpin> AsyncRead for Matched<IO, TLS> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Matched::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Matched::Kept(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<IO: AsyncWrite + Unpin, TLS: AsyncWrite + Unpin> AsyncWrite for Matched<IO, TLS> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Matched::Plain(io) => Pin::new(io).poll_write(cx, data),
            Matched::Kept(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Matched::Plain(io) => Pin::new(io).poll_write_vectored(cx, data),
            Matched::Kept(stream) => Pin::new(stream).poll_write_vectored(cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Matched::Plain(io) => io.is_write_vectored(),
            Matched::Kept(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Matched::Plain(io) => Pin::new(io).poll_flush(cx),
            Matched::Kept(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Matched::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Matched::Kept(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
