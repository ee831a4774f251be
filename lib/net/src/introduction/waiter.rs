//! A side that waits at a relay, and what it becomes.

use std::io;

use culvert_proto::pair::{Reply, ReplyCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::FAREWELL_MAX;
use super::link::Settled;
use super::seal::Sealer;
use crate::tls::ServerStream;

/// A connection that waits. With TLS that is left at MATCHED it holds no TLS connection, only
/// the key of the replies.
pub struct Waiter<IO> {
    wire: Wire<IO>,
}

pub(super) enum Wire<IO> {
    Plain(IO),
    Sealed(IO, Box<Sealer>),
    Kept(Box<ServerStream<IO>>),
}

/// What a waiter may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// It ended its connection, or the path is dead.
    Gone,
    /// It said something before MATCHED.
    Spoke,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Waiter<IO> {
    pub(super) fn new(wire: Wire<IO>) -> Self {
        Self { wire }
    }

    /// Says `reply`. A few bytes into an idle socket: it does not wait unless the peer is dead.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn say(&mut self, reply: Reply) -> io::Result<()> {
        let bytes = reply.encode();
        match &mut self.wire {
            Wire::Plain(io) => io.write_all(&bytes).await,
            Wire::Sealed(io, sealer) => io.write_all(&sealer.record(&bytes)?).await,
            Wire::Kept(stream) => {
                stream.write_all(&bytes).await?;
                stream.flush().await
            }
        }
    }

    /// Waits for what may not happen. Cancel safe.
    pub async fn disturbance(&mut self) -> Disturbance {
        let mut byte = [0];
        let read = match &mut self.wire {
            Wire::Plain(io) | Wire::Sealed(io, _) => io.read(&mut byte).await,
            Wire::Kept(stream) => stream.read(&mut byte).await,
        };
        match read {
            Ok(1..) => Disturbance::Spoke,
            Ok(0) | Err(_) => Disturbance::Gone,
        }
    }

    /// Says MATCHED and leaves TLS, unless it is kept.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn matched(mut self) -> io::Result<Settled<IO>> {
        self.say(ReplyCode::Matched.into()).await?;
        Ok(match self.wire {
            Wire::Plain(io) | Wire::Sealed(io, _) => Settled::Plain(io),
            Wire::Kept(stream) => Settled::Kept(stream),
        })
    }

    /// Says `reply` as the last word, in a way that it arrives.
    pub async fn dismiss(mut self, reply: Reply) {
        if self.say(reply).await.is_err() {
            return;
        }
        match &mut self.wire {
            Wire::Plain(io) | Wire::Sealed(io, _) => farewell(io, None).await,
            Wire::Kept(stream) => farewell(stream, None).await,
        }
    }
}

/// Says `reply`, if any, and waits a second for the peer's end: a socket closed over unread
/// bytes ends in RST, which may overtake what was said.
pub(super) async fn farewell<S>(stream: &mut S, reply: Option<Reply>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut unread = [0; 256];
    let _ = timeout(FAREWELL_MAX, async {
        if let Some(reply) = reply {
            stream.write_all(&reply.encode()).await?;
        }
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}
