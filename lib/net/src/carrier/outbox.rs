//! What waits for the socket: frames fetched from the mux, written in vectored writes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use culvert_mux::Mux;
use tokio::io::AsyncWrite;

/// Bytes taken from the mux for one round of writes: few while the socket is the bottleneck, so
/// that a small frame does not wait behind many large ones.
const BATCH_BYTES_MIN: usize = 64 * 1024;
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// Slices of one vectored write.
const SLICES_MAX: usize = 64;

/// The batch that is being written.
pub(super) struct Outbox {
    pub(super) queue: Vec<Bytes>,
    /// Slices of `queue` already written.
    written: usize,
    batch_bytes: usize,
    /// The mux had nothing more than `queue` at the last fetch.
    pub(super) drained: bool,
    needs_flush: bool,
    /// Since when the socket takes nothing.
    blocked_ms: Option<u64>,
    stall_ms_max: u64,
}

impl Outbox {
    pub(super) fn new(stall_ms_max: u64) -> Outbox {
        Outbox {
            queue: Vec::new(),
            written: 0,
            batch_bytes: BATCH_BYTES_MIN,
            drained: false,
            needs_flush: false,
            blocked_ms: None,
            stall_ms_max,
        }
    }

    /// Fetches the next batch once the last one is written.
    pub(super) fn fetch(&mut self, mux: &mut Mux, now_ms: u64) {
        if self.queue.is_empty() {
            mux.transmit(now_ms, &mut self.queue, self.batch_bytes);
        }
        self.drained = !mux.wants_transmit();
    }

    /// Nothing to write and nothing to fetch, as far as the last fetch knows.
    pub(super) fn is_idle(&self) -> bool {
        self.drained && self.queue.is_empty()
    }

    /// Everything has reached the socket.
    pub(super) fn is_flushed(&self) -> bool {
        self.queue.is_empty() && !self.needs_flush
    }

    /// When a write without progress ends the carrier.
    pub(super) fn stall_deadline_ms(&self) -> Option<u64> {
        self.blocked_ms
            .map(|since| since.saturating_add(self.stall_ms_max))
    }

    /// Writes until nothing is left of the batch or the socket takes no more. True if all of it
    /// went and the mux has more.
    pub(super) fn poll_write<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        now_ms: u64,
    ) -> io::Result<bool> {
        if self.queue.is_empty() {
            return self.poll_flush(cx, io, now_ms).map(|()| false);
        }
        while self.written < self.queue.len() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, bytes) in slices.iter_mut().zip(&self.queue[self.written..]) {
                *slice = IoSlice::new(bytes);
                count += 1;
            }
            match Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(bytes)) => {
                    self.consume(bytes);
                    self.blocked_ms = None;
                    self.needs_flush = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.batch_bytes = BATCH_BYTES_MIN;
                    self.blocked_ms.get_or_insert(now_ms);
                    return Ok(false);
                }
            }
        }
        self.queue.clear();
        self.queue.shrink_to(SLICES_MAX);
        self.written = 0;
        self.batch_bytes = (self.batch_bytes * 2).min(BATCH_BYTES_MAX);
        if self.drained {
            self.poll_flush(cx, io, now_ms)?;
        }
        Ok(!self.drained)
    }

    /// TLS and WebSocket hold bytes back until they are flushed.
    fn poll_flush<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        now_ms: u64,
    ) -> io::Result<()> {
        if !self.needs_flush {
            return Ok(());
        }
        match Pin::new(io).poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                self.needs_flush = false;
                self.blocked_ms = None;
            }
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => {
                self.blocked_ms.get_or_insert(now_ms);
            }
        }
        Ok(())
    }

    fn consume(&mut self, mut bytes: usize) {
        while let Some(slice) = self.queue.get_mut(self.written) {
            if bytes < slice.len() {
                slice.advance(bytes);
                return;
            }
            bytes -= slice.len();
            // Let go of the memory now, not with the batch.
            *slice = Bytes::new();
            self.written += 1;
        }
    }
}
