//! Bytes that were read beyond an HTTP head come first.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Transport;

/// `io` with `prefix` in front of what it reads. Costs nothing where there is no prefix.
pub(crate) fn rewound(prefix: Bytes, io: Box<dyn Transport>) -> Box<dyn Transport> {
    if prefix.is_empty() {
        io
    } else {
        Box::new(Rewound { prefix, io })
    }
}

struct Rewound<T> {
    prefix: Bytes,
    io: T,
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewound<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let bytes = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..bytes]);
        self.prefix.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

crate::write_through!([T: AsyncWrite + Unpin] Rewound<T>, io);
