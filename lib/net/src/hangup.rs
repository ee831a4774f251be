//! An end that must not look like a finished one: RST in place of FIN.
//!
//! FIN waits behind bytes that the peer has not acknowledged; RST does not, so a peer that hears us
//! but is not heard learns at once (F8). The order is a flag, not a descriptor: whoever ends the
//! carrier sets it, and the socket, under whatever TLS and WebSocket layers, obeys when it closes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::relay::End;

/// The order to reset a connection instead of finishing it. Clones are one order.
#[derive(Clone, Debug, Default)]
pub struct Hangup(Arc<AtomicBool>);

impl Hangup {
    /// From now on the connection's close is RST. There is no way back.
    pub fn demand(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the close has to be RST.
    #[must_use]
    pub fn is_demanded(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// For the owner of the socket, just before it closes: arms `SO_LINGER {1,0}` if demanded.
    pub fn arm(&self, socket: &impl AsFd) {
        if self.is_demanded()
            && let Err(error) = SockRef::from(socket).set_linger(Some(Duration::ZERO))
        {
            tracing::debug!(%error, "a connection cannot be reset; it is closed");
        }
    }
}

/// A TCP connection that obeys a [`Hangup`] when it is dropped.
pub struct Leg {
    stream: TcpStream,
    hangup: Hangup,
}

impl Leg {
    /// `stream`, and the order it obeys.
    #[must_use]
    pub fn new(stream: TcpStream) -> (Leg, Hangup) {
        let hangup = Hangup::default();
        let leg = Leg {
            stream,
            hangup: hangup.clone(),
        };
        (leg, hangup)
    }
}

impl End for Leg {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.stream.as_fd())
    }
}

impl Drop for Leg {
    fn drop(&mut self) {
        self.hangup.arm(&self.stream);
    }
}

impl AsyncRead for Leg {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

crate::write_through!([] Leg, stream);
