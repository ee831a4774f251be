//! Hands TLS whole records and never reads one byte beyond.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes before the body of a record: type, version, length.
const HEAD_BYTES: usize = 5;

/// A connection below TLS that is read record by record: what follows the last record that TLS
/// asked for stays in the socket.
pub struct Records<IO> {
    io: IO,
    head: [u8; HEAD_BYTES],
    head_got: usize,
    body_left: usize,
}

impl<IO> Records<IO> {
    /// Over `io`, which stands at the beginning of a record.
    pub fn new(io: IO) -> Self {
        Self {
            io,
            head: [0; HEAD_BYTES],
            head_got: 0,
            body_left: 0,
        }
    }

    /// No record has been read in part.
    pub fn is_at_boundary(&self) -> bool {
        self.head_got == 0 && self.body_left == 0
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// The connection itself.
    pub fn into_inner(self) -> IO {
        self.io
    }

    /// Bytes of the present record that may be read now.
    fn wanted(&self) -> usize {
        match self.body_left {
            0 => HEAD_BYTES - self.head_got,
            left => left,
        }
    }

    fn took(&mut self, bytes: &[u8]) {
        if self.body_left > 0 {
            self.body_left -= bytes.len();
            return;
        }
        self.head[self.head_got..self.head_got + bytes.len()].copy_from_slice(bytes);
        self.head_got += bytes.len();
        if self.head_got == HEAD_BYTES {
            let [.., high, low] = self.head;
            self.body_left = usize::from(u16::from_be_bytes([high, low]));
            self.head_got = 0;
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Records<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let room = this.wanted().min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
        ready!(Pin::new(&mut this.io).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        this.took(part.filled());
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

crate::write_through!([IO: AsyncWrite + Unpin] Records<IO>, io);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn a_read_ends_with_its_record_whatever_room_there_is() {
        let (mut far, near) = duplex(1 << 10);
        let mut near = Records::new(near);
        let sent = b"\x16\x03\x03\x00\x03abc\x17\x03\x03\x00\x00\x17\x03\x03\x00\x01xRAW";
        far.write_all(sent).await.unwrap();
        let mut got = Vec::new();
        let mut ends = Vec::new();
        while got.len() < sent.len() - 3 {
            let mut room = [0; 100];
            let read = near.read(&mut room).await.unwrap();
            got.extend_from_slice(&room[..read]);
            if near.is_at_boundary() {
                ends.push(got.len());
            }
        }
        assert_eq!(got, sent[..sent.len() - 3]);
        assert_eq!(ends, [8, 13, 19]);
        let mut raw = [0; 3];
        near.into_inner().read_exact(&mut raw).await.unwrap();
        assert_eq!(&raw, b"RAW");
    }

    #[tokio::test]
    async fn byte_by_byte_is_the_same() {
        let (mut far, near) = duplex(1);
        let mut near = Records::new(near);
        let sender = tokio::spawn(async move {
            far.write_all(b"\x17\x03\x03\x00\x02abRAW").await.unwrap();
            far
        });
        let mut got = [0; 7];
        near.read_exact(&mut got).await.unwrap();
        assert!(near.is_at_boundary());
        let mut raw = [0; 3];
        near.into_inner().read_exact(&mut raw).await.unwrap();
        assert_eq!((&got[5..], &raw), (&b"ab"[..], b"RAW"));
        sender.await.unwrap();
    }
}
