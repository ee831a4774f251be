//! An accepted upgrade: raw bytes both ways, half-close kept, failure is a reset.

use std::io;

use culvert_net::interject::Interjected;
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy_bidirectional_with_sizes};

use crate::upstream::dial::TargetIo;

/// One copy buffer in bytes; each direction has one.
const BUFFER_BYTES: usize = 16 * 1024;

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
    /// One end broke; the other was reset.
    pub async fn run<IO>(self) -> io::Result<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let hub: Parts<TokioIo<Interjected<IO>>> = open(self.hub).await?;
        let target: Parts<TokioIo<TargetIo>> = open(self.target).await?;
        let (mut stream, mut io) = (hub.io.into_inner().into_inner(), target.io.into_inner());
        io.arm_reset()?;
        relay(&mut stream, &hub.read_buf, &mut io, &target.read_buf).await?;
        io.disarm_reset()
    }
}

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

async fn relay<IO: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut IO,
    from_hub: &[u8],
    io: &mut TargetIo,
    from_target: &[u8],
) -> io::Result<()> {
    io.write_all(from_hub).await?;
    stream.write_all(from_target).await?;
    stream.flush().await?;
    copy_bidirectional_with_sizes(stream, io, BUFFER_BYTES, BUFFER_BYTES).await?;
    Ok(())
}

async fn open<T: hyper::rt::Read + hyper::rt::Write + Unpin + 'static>(
    upgrade: OnUpgrade,
) -> io::Result<Parts<T>> {
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    upgraded
        .downcast::<T>()
        .map_err(|_: Upgraded| io::Error::other("an upgrade of a foreign kind"))
}
