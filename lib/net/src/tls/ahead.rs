//! Reads ahead below TLS. rustls asks for 4 KiB at a time; in bulk each record of 16 KiB would
//! cost five calls of the kernel.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::relay::buffer;

/// A connection below TLS. At rest it holds no buffer.
pub struct Ahead<IO> {
    io: IO,
    /// A buffer of the thread, and the part of it that was not taken yet.
    held: Option<(Box<[u8]>, usize, usize)>,
}

impl<IO> Ahead<IO> {
    pub(super) fn new(io: IO) -> Self {
        Self { io, held: None }
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// The connection itself, without the bytes that were read ahead.
    pub fn into_inner(self) -> IO {
        self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Ahead<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.held.is_none() {
            let mut taken = buffer::take();
            let mut read = ReadBuf::new(&mut taken);
            let polled = Pin::new(&mut this.io).poll_read(cx, &mut read);
            let bytes = read.filled().len();
            if bytes == 0 {
                buffer::give_back(taken);
                return polled;
            }
            ready!(polled)?;
            this.held = Some((taken, 0, bytes));
        }
        if let Some((held, from, until)) = &mut this.held {
            let count = buf.remaining().min(*until - *from);
            buf.put_slice(&held[*from..*from + count]);
            *from += count;
            if from == until
                && let Some((held, ..)) = this.held.take()
            {
                buffer::give_back(held);
            }
        }
        Poll::Ready(Ok(()))
    }
}

crate::write_through!([IO: AsyncWrite + Unpin] Ahead<IO>, io);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn small_reads_come_out_of_one_and_nothing_is_held_at_rest() {
        let (mut far, near) = duplex(64 << 10);
        let mut near = Ahead::new(near);
        let sent: Vec<u8> = (0..10_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        far.write_all(&sent).await.unwrap();
        let mut got = vec![0; sent.len()];
        near.read_exact(&mut got[..100]).await.unwrap();
        assert!(near.held.is_some(), "the rest was read ahead");
        near.read_exact(&mut got[100..]).await.unwrap();
        assert!(got == sent && near.held.is_none());
        drop(far);
        assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(near.held.is_none());
    }
}
