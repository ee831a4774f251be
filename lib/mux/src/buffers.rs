//! Bytes in waiting: what a stream has received and not read, and what it has to send.
//!
//! Nothing here allocates per frame in the steady state: small payloads go through chunks that
//! the whole session shares, large ones are slices of the buffer they came in. A reader that lags
//! gets its bytes copied together, so that a window costs its bytes and pins nobody's buffer.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use bytes::{Buf as _, BufMut, Bytes, BytesMut};

use crate::send::Writer;

/// Received payloads from this size on are kept as slices of the carrier's buffer.
const SLICE_BYTES_MIN: usize = 2 << 10;
/// Written payloads below this size are copied together.
const SMALL_BYTES_MAX: usize = 1 << 10;
/// Chunk in which small payloads of one stream are gathered.
const TAIL_BYTES: usize = 4 << 10;
/// Chunk in which small payloads of all streams are handed to readers.
const ARENA_BYTES: usize = 4 << 10;
/// Emptied chunks kept for the next stream that needs one.
const SPARE_CHUNKS_MAX: usize = 16;
/// A queue that emptied keeps room for so many chunks.
const QUEUE_CHUNKS_KEPT: usize = 8;

/// Chunks that no stream owns at the moment.
#[derive(Default)]
pub(crate) struct Chunks {
    spare: Vec<BytesMut>,
    arena: BytesMut,
}

impl Chunks {
    fn take(&mut self) -> BytesMut {
        self.spare
            .pop()
            .unwrap_or_else(|| BytesMut::with_capacity(TAIL_BYTES))
    }

    fn give(&mut self, mut chunk: BytesMut) {
        chunk.clear();
        if self.spare.len() < SPARE_CHUNKS_MAX && chunk.try_reclaim(TAIL_BYTES) {
            self.spare.push(chunk);
        }
    }

    /// A copy that shares its allocation with its neighbours.
    fn copy(&mut self, data: &[u8]) -> Bytes {
        if self.arena.capacity() < data.len() {
            self.arena.reserve(data.len().max(ARENA_BYTES));
        }
        self.arena.extend_from_slice(data);
        self.arena.split().freeze()
    }

    /// Keeps nothing.
    pub(crate) fn rest(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.spare.len() * TAIL_BYTES + self.arena.capacity()
    }
}

/// Chunks in order, the last one open for more.
#[derive(Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
}

impl Queue {
    /// Takes a buffer as it is, without copying it.
    fn push(&mut self, data: Bytes, pool: &mut Chunks) {
        self.close_tail(pool);
        self.bytes += data.len();
        self.chunks.push_back(data);
    }

    /// Copies into the open chunk.
    fn append(&mut self, mut data: &[u8], pool: &mut Chunks) {
        self.bytes += data.len();
        while !data.is_empty() {
            if self.tail.capacity() == 0 {
                self.tail = pool.take();
            }
            let room = self.tail.capacity() - self.tail.len();
            let (now, later) = data.split_at(room.min(data.len()));
            self.tail.extend_from_slice(now);
            data = later;
            if self.tail.len() == self.tail.capacity() {
                self.close_tail(pool);
            }
        }
    }

    /// A chunk that is mostly empty is not worth its room: its bytes move to one of their size.
    fn close_tail(&mut self, pool: &mut Chunks) {
        let tail = core::mem::take(&mut self.tail);
        if tail.len() >= TAIL_BYTES / 2 {
            self.chunks.push_back(tail.freeze());
        } else if !tail.is_empty() {
            self.chunks.push_back(Bytes::copy_from_slice(&tail));
            pool.give(tail);
        }
    }

    /// At most `max` bytes from the front; a short open chunk is copied out and stays pooled.
    fn pop(&mut self, max: usize, pool: &mut Chunks) -> Option<Bytes> {
        let popped = match self.chunks.front_mut() {
            Some(front) if front.len() > max => front.split_to(max),
            Some(_) => self.chunks.pop_front()?,
            None if self.tail.is_empty() => return None,
            None if self.tail.len() <= max.min(SMALL_BYTES_MAX) => {
                let copy = pool.copy(&self.tail);
                pool.give(core::mem::take(&mut self.tail));
                copy
            }
            None => {
                let max = max.min(self.tail.len());
                let popped = self.tail.split_to(max).freeze();
                if self.tail.is_empty() {
                    self.tail = BytesMut::new();
                }
                popped
            }
        };
        self.bytes -= popped.len();
        self.rest();
        Some(popped)
    }

    /// Gives the room of a long queue back once it is empty.
    fn rest(&mut self) {
        if self.bytes == 0 && self.chunks.capacity() > QUEUE_CHUNKS_KEPT {
            self.chunks = VecDeque::new();
        }
    }

    fn clear(&mut self, pool: &mut Chunks) {
        self.chunks = VecDeque::new();
        self.bytes = 0;
        pool.give(core::mem::take(&mut self.tail));
    }

    fn memory_bytes(&self) -> usize {
        // A buffer behind `Bytes` costs a header of its own and the allocator's.
        let each = size_of::<Bytes>() + 32;
        self.bytes + self.chunks.len() * each + self.tail.capacity() - self.tail.len()
    }
}

/// Received and not read.
#[derive(Default)]
pub(crate) struct Inbox {
    queue: Queue,
    /// The epoch since which slices of shared buffers are held.
    pinned_since: Option<u64>,
    /// The epoch in which this was told last.
    told_in: Option<u64>,
}

impl Inbox {
    pub(crate) fn unread(&self) -> usize {
        self.queue.bytes
    }

    pub(crate) fn pinned_since(&self) -> Option<u64> {
        self.pinned_since
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.queue.memory_bytes()
    }

    /// Takes `data[from..to]`; `true` if the stream begins to hold a shared buffer with it, for the
    /// first time in this epoch.
    pub(crate) fn push(
        &mut self,
        data: &Bytes,
        from: usize,
        to: usize,
        epoch: u64,
        pool: &mut Chunks,
    ) -> bool {
        let caught_up = self.queue.bytes == 0;
        let large = to - from >= SLICE_BYTES_MIN;
        if large && (caught_up || self.pinned_since.is_some()) {
            self.queue.push(data.slice(from..to), pool);
        } else if caught_up {
            let copy = pool.copy(&data[from..to]);
            self.queue.push(copy, pool);
        } else {
            self.queue.append(&data[from..to], pool);
        }
        if caught_up {
            self.pinned_since = Some(epoch);
        }
        caught_up && self.told_in.replace(epoch) != Some(epoch)
    }

    /// Copies what is held of shared buffers into chunks of its own: the reader lags.
    pub(crate) fn unpin(&mut self, pool: &mut Chunks) {
        self.pinned_since = None;
        let held = core::mem::take(&mut self.queue);
        for chunk in &held.chunks {
            self.queue.append(chunk, pool);
        }
        self.queue.append(&held.tail, pool);
        pool.give(held.tail);
    }

    pub(crate) fn read(&mut self, max: usize, pool: &mut Chunks) -> Option<Bytes> {
        let data = self.queue.pop(max, pool);
        self.note_emptied();
        data
    }

    /// Fills `out` as far as there are bytes.
    pub(crate) fn read_buf(&mut self, out: &mut impl BufMut, pool: &mut Chunks) -> usize {
        let mut filled = 0;
        while out.has_remaining_mut() && self.queue.bytes > 0 {
            let free = out.remaining_mut();
            let taken = match self.queue.chunks.front_mut() {
                Some(front) => {
                    let taken = front.len().min(free);
                    out.put_slice(&front[..taken]);
                    if taken == front.len() {
                        self.queue.chunks.pop_front();
                    } else {
                        front.advance(taken);
                    }
                    taken
                }
                None => {
                    let tail = &mut self.queue.tail;
                    let taken = tail.len().min(free);
                    out.put_slice(&tail[..taken]);
                    if taken == tail.len() {
                        pool.give(core::mem::take(tail));
                    } else {
                        tail.advance(taken);
                    }
                    taken
                }
            };
            self.queue.bytes -= taken;
            filled += taken;
        }
        self.queue.rest();
        self.note_emptied();
        filled
    }

    fn note_emptied(&mut self) {
        if self.queue.bytes == 0 {
            self.pinned_since = None;
        }
    }

    pub(crate) fn clear(&mut self, pool: &mut Chunks) {
        self.queue.clear(pool);
        self.pinned_since = None;
    }
}

/// Written and not transmitted.
#[derive(Default)]
pub(crate) struct Outbox {
    queue: Queue,
}

impl Outbox {
    pub(crate) fn queued(&self) -> usize {
        self.queue.bytes
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.queue.memory_bytes()
    }

    pub(crate) fn push(&mut self, data: Bytes, pool: &mut Chunks) {
        if data.len() < SMALL_BYTES_MAX {
            self.queue.append(&data, pool);
        } else {
            self.queue.push(data, pool);
        }
    }

    pub(crate) fn push_slice(&mut self, data: &[u8], pool: &mut Chunks) {
        if data.len() < SMALL_BYTES_MAX {
            self.queue.append(data, pool);
        } else {
            self.queue.push(Bytes::copy_from_slice(data), pool);
        }
    }

    /// Moves exactly `length` bytes, of which there must be as many, into `writer`.
    pub(crate) fn transmit(
        &mut self,
        mut length: usize,
        writer: &mut Writer<'_>,
        pool: &mut Chunks,
    ) {
        while length > 0 {
            let only_tail = self.queue.chunks.is_empty();
            if only_tail && self.queue.tail.len() == length && length < SMALL_BYTES_MAX {
                writer.copy(&self.queue.tail);
                self.queue.clear(pool);
                return;
            }
            let Some(data) = self.queue.pop(length, pool) else {
                return;
            };
            length -= data.len();
            writer.body(data);
        }
    }

    pub(crate) fn clear(&mut self, pool: &mut Chunks) {
        self.queue.clear(pool);
    }
}
