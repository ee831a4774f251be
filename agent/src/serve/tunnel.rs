//! An accepted upgrade: raw bytes both ways, half-close kept, failure is a reset.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use culvert_net::interject::Interjected;
use culvert_net::relay::{Early, End, relay};
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::upstream::dial::TargetIo;

/// Both ends of an upgrade that the target accepted.
pub struct Tunnel {
    /// The stream's end.
    pub hub: OnUpgrade,
    /// The target's end.
    pub target: OnUpgrade,
}

impl Tunnel {
    /// Relays until both directions have ended.
    ///
    /// # Errors
    /// An end was taken over in the middle of something else. One that breaks later resets the
    /// other, and is no error here.
    pub async fn run<IO>(self) -> io::Result<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let hub: Parts<TokioIo<Interjected<IO>>> = open(self.hub).await?;
        let target: Parts<TokioIo<TargetIo>> = open(self.target).await?;
        let early = Early {
            to_service: hub.read_buf,
            to_client: target.read_buf,
        };
        let mut stream = Unseen(hub.io.into_inner().into_inner());
        let mut io = target.io.into_inner();
        relay(&mut stream, &mut io, early).await;
        Ok(())
    }
}

/// A stream of the hub, which has no socket of its own.
struct Unseen<IO>(IO);

impl<IO: AsyncRead + AsyncWrite + Unpin> End for Unseen<IO> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Unseen<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

culvert_net::write_through!([IO: AsyncWrite + Unpin] Unseen<IO>, 0);

/// Ends the stream behind an ordinary answer to a request that wanted an upgrade: hyper leaves
/// that to whoever takes the connection over, and dropped it would be a reset that undoes the
/// answer.
///
/// # Errors
/// The stream broke.
pub async fn finish(hub: OnUpgrade) -> io::Result<()> {
    match hub.await {
        Ok(stream) => TokioIo::new(stream).shutdown().await,
        // No upgrade was asked for: hyper has ended the stream.
        Err(_) => Ok(()),
    }
}

async fn open<T: hyper::rt::Read + hyper::rt::Write + Unpin + 'static>(
    upgrade: OnUpgrade,
) -> io::Result<Parts<T>> {
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    upgraded
        .downcast::<T>()
        .map_err(|_: Upgraded| io::Error::other("an upgrade of a foreign kind"))
}
