//! One direction of a flow: read, write, and the end behind the last byte.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Broken, buffer};

/// Buffers of one turn: with n flows in bulk, a small message waits for n turns.
const READS_MAX: u32 = 2;
/// Plaintext of one TLS record (RFC 8446, 5.1).
const RECORD_BYTES: usize = 16 << 10;

/// What comes from one end and goes to the other.
pub(super) struct Direction {
    /// Delivered before anything is read.
    early: Bytes,
    /// Read and not delivered: a buffer and the part of it that waits.
    rest: Option<(Box<[u8]>, usize, usize)>,
    moved: u64,
    /// Something was written since the last flush.
    unflushed: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The end was read; it is told when all before it was delivered.
    Ended,
    /// It was told.
    Done,
}

impl Direction {
    pub(super) fn new(early: Bytes) -> Direction {
        Direction {
            early,
            rest: None,
            moved: 0,
            unflushed: false,
            state: State::Open,
        }
    }

    /// Bytes delivered.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Bytes wait for the other end to take them.
    pub(super) fn waits_for_room(&self) -> bool {
        !self.early.is_empty() || self.rest.is_some()
    }

    /// Moves what can be moved; ready when the end was told. `from` counts as the client.
    pub(super) fn poll<F, T>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
    ) -> Result<Poll<()>, Broken>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        for _ in 0..READS_MAX {
            match self.step(cx, from, to)? {
                Step::Moved => {}
                Step::Waits => return Ok(Poll::Pending),
                Step::Done => return Ok(Poll::Ready(())),
            }
        }
        cx.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    fn step<F, T>(&mut self, cx: &mut Context<'_>, from: &mut F, to: &mut T) -> Result<Step, Broken>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        let at_client = |why| Broken {
            at_client: true,
            why,
        };
        let at_service = |why| Broken {
            at_client: false,
            why,
        };
        if self.state == State::Done {
            return Ok(Step::Done);
        }
        if self.deliver(cx, to).map_err(at_service)?.is_pending() {
            return Ok(Step::Waits);
        }
        if self.state == State::Ended {
            // A flush is part of it.
            if Pin::new(to)
                .poll_shutdown(cx)
                .map_err(at_service)?
                .is_pending()
            {
                return Ok(Step::Waits);
            }
            self.state = State::Done;
            return Ok(Step::Done);
        }
        let mut taken = buffer::take();
        let mut read = ReadBuf::new(&mut taken);
        let mut polled = Pin::new(&mut *from).poll_read(cx, &mut read);
        let mut bytes = read.filled().len();
        // TLS gives a record at a time: several go on in one write.
        while bytes > 0 && polled.is_ready() && read.remaining() >= RECORD_BYTES {
            polled = Pin::new(&mut *from).poll_read(cx, &mut read);
            match &polled {
                Poll::Ready(Err(_)) => break,
                Poll::Ready(Ok(())) if read.filled().len() == bytes => {
                    self.state = State::Ended;
                    break;
                }
                _ => {}
            }
            if read.filled().len() == bytes {
                break;
            }
            bytes = read.filled().len();
        }
        if bytes > 0 && !matches!(polled, Poll::Ready(Err(_))) {
            self.rest = Some((taken, 0, bytes));
            return Ok(Step::Moved);
        }
        buffer::give_back(taken);
        match polled {
            Poll::Ready(Ok(())) => {
                self.state = State::Ended;
                Ok(Step::Moved)
            }
            Poll::Ready(Err(why)) => Err(at_client(why)),
            Poll::Pending => {
                if self.unflushed {
                    let flushed = Pin::new(to).poll_flush(cx).map_err(at_service)?;
                    self.unflushed = flushed.is_pending();
                }
                Ok(Step::Waits)
            }
        }
    }

    /// Writes what waits; ready when nothing does.
    fn deliver<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut T,
    ) -> Poll<io::Result<()>> {
        while !self.early.is_empty() {
            let wrote = ready!(Pin::new(&mut *to).poll_write(cx, &self.early))?;
            self.count(wrote)?;
            self.early.advance(wrote);
        }
        while let Some((buffer, from, until)) = &mut self.rest {
            let wrote = ready!(Pin::new(&mut *to).poll_write(cx, &buffer[*from..*until]))?;
            *from += wrote;
            let all = from == until;
            self.count(wrote)?;
            if all && let Some((buffer, ..)) = self.rest.take() {
                buffer::give_back(buffer);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn count(&mut self, wrote: usize) -> io::Result<()> {
        if wrote == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.moved += wrote as u64;
        self.unflushed = true;
        Ok(())
    }
}

enum Step {
    Moved,
    Waits,
    Done,
}
