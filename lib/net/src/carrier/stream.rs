//! One relayed connection inside a session.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use culvert_mux::{Mux, Read, StreamError, StreamId, Write};
use culvert_proto::close::CloseReason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::core::Core;
use super::error::to_io;
use super::shared::{Shared, Wakes, wake};

/// Bytes handed out by one zero-copy read.
const READ_BYTES_MAX: usize = 64 * 1024;

/// A stream of a session: a byte stream both ways, half-close included.
///
/// Only FIN reads as the end; reset and loss of the carrier are errors that carry a close reason
/// ([`super::close_reason`]). Dropped without `shutdown`, it is reset; dropped after it, the peer's
/// end is awaited for a bounded time in the background.
pub struct Stream {
    shared: Arc<Shared>,
    id: StreamId,
    /// Bytes that came with the header.
    prefix: Bytes,
    /// Since when a write waits for the peer's credit or the carrier.
    blocked: Option<Instant>,
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, id: StreamId, prefix: Bytes) -> Stream {
        Stream {
            shared,
            id,
            prefix,
            blocked: None,
        }
    }

    /// Adds the time in which writes wait up.
    fn keep_stall(&mut self, waits: bool) {
        match (waits, self.blocked) {
            (true, None) => self.blocked = Some(Instant::now()),
            (false, Some(since)) => {
                self.shared.stalled(since.elapsed());
                self.blocked = None;
            }
            _ => {}
        }
    }

    /// Its id on the wire.
    #[must_use]
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// The next bytes without a copy; `None` at the end.
    ///
    /// # Errors
    /// When the stream was reset or the carrier is gone.
    pub fn poll_read_bytes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.prefix.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.prefix))));
        }
        self.locked(cx, Core::wait_readable, |mux, id| {
            match mux.read(id, READ_BYTES_MAX) {
                Ok(Read::Data(data)) => Ok(Some(Some(data))),
                Ok(Read::Eof) => Ok(Some(None)),
                Ok(Read::Pending) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    /// Queues `data` without a copy, as far as the send gate takes it; the rest stays in `data`.
    /// Ready when all of it is queued.
    ///
    /// # Errors
    /// When the stream was reset or the carrier is gone.
    pub fn poll_write_bytes(
        &mut self,
        cx: &mut Context<'_>,
        data: &mut Bytes,
    ) -> Poll<io::Result<()>> {
        if data.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let all = std::mem::take(data);
        let polled = self.locked(cx, Core::wait_writable, |mux, id| {
            match mux.write(id, all) {
                Ok(Write::Accepted) => Ok(Some(())),
                Ok(Write::Blocked(rest)) => {
                    *data = rest;
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        });
        self.keep_stall(polled.is_pending());
        polled
    }

    /// Ends the stream at once: the peer sees a reset, later calls on this handle see `reason`.
    pub fn reset(&mut self, reason: CloseReason) {
        self.shared.cut(self.id, reason);
    }

    /// Runs a read or a write under the lock; `None` = not yet, and `wait` says who asked.
    fn locked<R>(
        &self,
        cx: &mut Context<'_>,
        wait: fn(&mut Core, StreamId, &Waker),
        act: impl FnOnce(&mut Mux, StreamId) -> Result<Option<R>, StreamError>,
    ) -> Poll<io::Result<R>> {
        let mut core = self.shared.lock();
        if let Some(reason) = core.ended() {
            return Poll::Ready(Err(to_io(reason)));
        }
        let result = match act(&mut core.mux, self.id) {
            Ok(Some(done)) => Poll::Ready(Ok(done)),
            Ok(None) => {
                wait(&mut core, self.id, cx.waker());
                Poll::Pending
            }
            Err(StreamError::Finished) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Err(error) => Poll::Ready(Err(to_io(core.error(self.id, error)))),
        };
        // Bytes wait to be sent, or credit.
        let driver = core.unpark();
        drop(core);
        wake(driver);
        result
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !self.prefix.is_empty() {
            let bytes = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(bytes));
            return Poll::Ready(Ok(()));
        }
        // One copy, from the carrier's buffers to the caller's; as many buffers as fit, under one
        // lock.
        self.locked(cx, Core::wait_readable, |mux, id| mux.read_buf(id, buf))
            .map_ok(|_| ())
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let polled = self.locked(cx, Core::wait_writable, |mux, id| {
            let mut written = 0;
            for slice in slices.iter().filter(|slice| !slice.is_empty()) {
                let taken = mux.write_slice(id, slice)?;
                written += taken;
                if taken < slice.len() {
                    break;
                }
            }
            Ok((written > 0).then_some(written))
        });
        self.keep_stall(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What is written is queued already; the driver sends it without being asked.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// FIN behind what is queued. Reading goes on.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut core = self.shared.lock();
        core.finish(self.id);
        let driver = core.unpark();
        drop(core);
        wake(driver);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.keep_stall(false);
        let now_ms = self.shared.now_ms();
        let mut wakes = Wakes::default();
        let mut core = self.shared.lock();
        core.dropped(now_ms, self.id);
        core.wake_leaver(&mut wakes);
        let driver = core.unpark();
        drop(core);
        wake(driver);
        self.shared.wake(&mut wakes);
    }
}
