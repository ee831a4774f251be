//! To the carrier: whose turn it is, and frames as a list of buffers for one vectored write.

use alloc::vec::Vec;
use bytes::{Bytes, BytesMut};

use crate::frame::{ACK, FIN, HEADER_BYTES, Header, Kind, RST, SYN, wire_length};
use crate::mux::{Farewell, Life};
use crate::stream::{Key, Place, Sending, told};
use crate::window::Tuning;
use crate::{Mux, StreamId};

/// Least room that one transmit is given.
const TRANSMIT_BYTES_MIN: usize = 1_024;
/// With less room left the next frame waits, rather than be cut to crumbs.
const FRAME_ROOM_MIN: usize = 256;
/// Payload up to this size is copied behind its header; larger is a buffer of its own.
const COPY_BYTES_MAX: usize = 1 << 10;
/// Headers and small payloads are laid out in blocks of this size.
const STAGING_BYTES: usize = 16 << 10;
/// A block with less room is not begun with.
const STAGING_BYTES_MIN: usize = 2 << 10;

/// A session that transmits less than this in a second makes its buffers anew when it needs them.
const SLOW_BYTES: usize = 1 << 10;
const PACE_WINDOW_MS: u64 = 1_000;

/// What was transmitted in this second and in the one before.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    since_ms: u64,
    bytes: usize,
    before: usize,
}

impl Pace {
    fn turn(&mut self, now_ms: u64) {
        let past_ms = now_ms.saturating_sub(self.since_ms);
        if past_ms >= PACE_WINDOW_MS {
            self.before = if past_ms < 2 * PACE_WINDOW_MS {
                self.bytes
            } else {
                0
            };
            (self.since_ms, self.bytes) = (now_ms, 0);
        }
    }

    fn count(&mut self, now_ms: u64, bytes: usize) {
        self.turn(now_ms);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn is_slow(&mut self, now_ms: u64) -> bool {
        self.turn(now_ms);
        self.bytes.max(self.before) < SLOW_BYTES
    }
}

/// Lays frames out for the carrier.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<Bytes>,
    staging: BytesMut,
    room: usize,
    written: usize,
}

impl Writer<'_> {
    /// Payload that fits behind a header.
    fn room(&self) -> usize {
        self.room.saturating_sub(HEADER_BYTES)
    }

    fn header(&mut self, kind: Kind, flags: u16, id: u32, length: u32) {
        self.copy(
            &Header {
                kind,
                flags,
                id,
                length,
            }
            .encode(),
        );
    }

    pub(crate) fn copy(&mut self, data: &[u8]) {
        if self.staging.capacity() - self.staging.len() < data.len() {
            self.flush();
            self.staging.reserve(data.len().max(STAGING_BYTES));
        }
        self.staging.extend_from_slice(data);
        self.count(data.len());
    }

    pub(crate) fn body(&mut self, data: Bytes) {
        if data.len() <= COPY_BYTES_MAX {
            return self.copy(&data);
        }
        self.flush();
        self.count(data.len());
        self.out.push(data);
    }

    fn count(&mut self, bytes: usize) {
        self.room = self.room.saturating_sub(bytes);
        self.written += bytes;
    }

    fn flush(&mut self) {
        if !self.staging.is_empty() {
            self.out.push(self.staging.split().freeze());
        }
    }
}

impl Mux {
    /// Appends at most `bytes_max` bytes of frames (taken as 1,024 if it is less) to `out`, for
    /// one vectored write; returns how many bytes.
    pub fn transmit(&mut self, now_ms: u64, out: &mut Vec<Bytes>, bytes_max: usize) -> usize {
        self.now_ms = self.now_ms.max(now_ms);
        if !self.wants_transmit() {
            self.rest();
            return 0;
        }
        let mut writer = Writer {
            out,
            staging: core::mem::take(&mut self.staging),
            room: bytes_max.max(TRANSMIT_BYTES_MIN),
            written: 0,
        };
        // Now, when the last batch is most likely gone, the block can be used again.
        if writer.staging.capacity() < STAGING_BYTES_MIN {
            writer.staging.reserve(STAGING_BYTES);
        }
        if !self.pongs_out.is_empty() {
            self.write_pong(&mut writer);
        }
        self.write_session(now_ms, &mut writer);
        if self.life == Life::Open {
            self.write_resets(&mut writer);
            self.write_notices(now_ms, &mut writer);
            self.write_first(&mut writer);
            self.write_in_turn(&mut writer);
            if !self.pongs_out.is_empty() {
                self.write_pong(&mut writer);
            }
        }
        writer.flush();
        let written = writer.written;
        self.staging = writer.staging;
        self.stats.bytes_transmitted += written as u64;
        self.pace.count(self.now_ms, written);
        self.rest();
        written
    }

    /// A session that does little but beat owns no buffer: most of a hub's are so.
    fn rest(&mut self) {
        if self.pace.is_slow(self.now_ms) && !self.wants_transmit() {
            self.staging = BytesMut::new();
            self.pool.rest();
        }
    }

    /// Whether [`Mux::transmit`] has something to say.
    #[must_use]
    pub fn wants_transmit(&self) -> bool {
        self.go_away_out.is_some()
            || !self.pongs_out.is_empty()
            || self.pinger.wants_transmit()
            || !self.resets_out.is_empty()
            || !self.notices.is_empty()
            || self.first.is_some()
            || !self.fresh.is_empty()
            || !self.bulk.is_empty()
    }

    /// A pong never overtakes the SYN of a stream: to a peer that leaves it says that nothing
    /// opened before is on its way ([`Mux::leave`]).
    fn write_pong(&mut self, writer: &mut Writer<'_>) {
        let unannounced = |mux: &Mux| {
            let mut streams = mux.table.iter();
            streams.any(|(_, stream)| stream.end.is_none() && stream.flags & SYN != 0)
        };
        if unannounced(self) {
            return;
        }
        while writer.room() > 0
            && let Some(value) = self.pongs_out.pop()
        {
            writer.header(Kind::Ping, ACK, 0, value);
        }
    }

    fn write_session(&mut self, now_ms: u64, writer: &mut Writer<'_>) {
        if let Some(code) = self.go_away_out.take() {
            writer.header(Kind::GoAway, 0, 0, code);
        }
        if let Some(value) = self.pinger.transmit(now_ms) {
            writer.header(Kind::Ping, SYN, 0, value);
            if self.farewell == Farewell::Due {
                self.farewell = Farewell::Sent(value);
            }
        }
    }

    fn write_resets(&mut self, writer: &mut Writer<'_>) {
        while writer.room() > 0
            && let Some(id) = self.resets_out.pop_front()
        {
            writer.header(Kind::WindowUpdate, RST, id, 0);
        }
    }

    /// SYN, ACK and credit.
    fn write_notices(&mut self, now_ms: u64, writer: &mut Writer<'_>) {
        let tuning = Tuning {
            initial: self.config.window_initial,
            max: self.config.window_max,
            rtt_ms: self.pinger.rtt_ms(),
        };
        while writer.room() > 0
            && let Some(key) = self.notices.pop()
        {
            let Some(stream) = self.table.get_mut(key) else {
                continue;
            };
            stream.noticed = false;
            if stream.end.is_some() {
                continue;
            }
            let unread = stream.inbox.unread();
            let mut delta = 0;
            if !stream.received_fin && !stream.released && stream.window.is_due(unread) {
                let before = stream.unread_charge();
                delta = stream
                    .window
                    .grant(unread, now_ms, tuning, &self.account.budget);
                // What growth pays for is not charged again, and the other way round.
                match stream.unread_charge().checked_sub(before) {
                    Some(more) => self.account.add(more),
                    None => self.account.sub(before - stream.unread_charge()),
                }
                self.pinger.probe(now_ms);
            }
            // A SYN or ACK rides on bytes that are next in line anyway.
            let rides = delta == 0 && stream.place == Place::Fresh;
            if (stream.flags != 0 && !rides) || delta > 0 {
                let flags = core::mem::take(&mut stream.flags);
                writer.header(Kind::WindowUpdate, flags, key.id, delta);
            }
        }
    }

    fn write_first(&mut self, writer: &mut Writer<'_>) {
        let Some(key) = self.first else { return };
        while self.write_frame(key, writer).is_some() {}
        let waits = self
            .table
            .get(key)
            .is_some_and(|stream| stream.is_sendable());
        if !waits {
            self.first = None;
            self.note_stall(key);
        }
    }

    /// Deficit round robin. A stream that becomes active goes before the others until it has used
    /// one quantum, so that small messages pass bulk; when it runs dry while others wait, it takes
    /// a place behind them, so that it cannot do so again and again.
    fn write_in_turn(&mut self, writer: &mut Writer<'_>) {
        let quantum = self.config.frame_bytes_max.cast_signed();
        while writer.room() >= FRAME_ROOM_MIN {
            let from_fresh = !self.fresh.is_empty();
            let line = if from_fresh {
                &mut self.fresh
            } else {
                &mut self.bulk
            };
            let Some(key) = line.front() else { return };
            let others_wait = from_fresh && !self.bulk.is_empty();
            let verdict = match self.table.get_mut(key) {
                None => Turn::Over,
                Some(stream) if !stream.is_sendable() && others_wait => Turn::Behind,
                Some(stream) if !stream.is_sendable() => Turn::Over,
                Some(stream) if stream.deficit <= 0 => {
                    stream.deficit += quantum;
                    Turn::Behind
                }
                Some(_) => Turn::Now,
            };
            match verdict {
                Turn::Now => {
                    self.write_frame(key, writer);
                }
                Turn::Behind => {
                    self.take_off(from_fresh, key, Place::Bulk);
                    self.bulk.push(key);
                }
                Turn::Over => {
                    self.take_off(from_fresh, key, Place::Nowhere);
                    self.note_stall(key);
                }
            }
        }
    }

    fn take_off(&mut self, from_fresh: bool, key: Key, place: Place) {
        if from_fresh {
            self.fresh.pop();
        } else {
            self.bulk.pop();
        }
        if let Some(stream) = self.table.get_mut(key) {
            stream.place = place;
        }
    }

    /// One Data frame, or FIN once the queue is empty. FIN never shares a frame with payload:
    /// Go peers act on the flag before they store the bytes.
    fn write_frame(&mut self, key: Key, writer: &mut Writer<'_>) -> Option<()> {
        let stream = self.table.get_mut(key)?;
        if writer.room() == 0 || !stream.is_sendable() {
            return None;
        }
        let queued = stream.outbox.queued();
        let length = queued
            .min(stream.credit as usize)
            .min(self.config.frame_bytes_max)
            .min(writer.room());
        let flags = core::mem::take(&mut stream.flags);
        if queued == 0 {
            writer.header(Kind::Data, flags | FIN, key.id, 0);
            stream.sending = Sending::Finished;
            self.note_finished(key);
            return Some(());
        }
        let wire = wire_length(length);
        writer.header(Kind::Data, flags, key.id, wire);
        stream.outbox.transmit(length, writer, &mut self.pool);
        stream.credit -= wire;
        stream.deficit -= (length + HEADER_BYTES).cast_signed();
        self.account.sub(length);
        let half_free = stream.outbox.queued() <= self.config.send_gate_bytes / 2;
        if half_free && core::mem::take(&mut stream.writer_waits) {
            self.tell(key, told::WRITABLE);
        }
        Some(())
    }

    // --- stalls ---

    pub(crate) fn note_stall(&mut self, key: Key) {
        let now_ms = self.now_ms;
        let limit_ms = self.config.stall_ms_max;
        let Some(stream) = self.table.get_mut(key) else {
            return;
        };
        if limit_ms > 0 && stream.is_stalled() && stream.stalled_ms.is_none() {
            stream.stalled_ms = Some(now_ms);
            self.stall_check_ms
                .get_or_insert(now_ms.saturating_add(limit_ms));
        }
    }

    /// When to call [`Mux::handle_timeout`].
    #[must_use]
    pub fn next_timeout_ms(&self) -> Option<u64> {
        self.stall_check_ms
    }

    /// Resets streams whose peer has shut its window for longer than `stall_ms_max`.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        if self.stall_check_ms.is_none_or(|at| now_ms < at) {
            return;
        }
        let limit_ms = self.config.stall_ms_max;
        let since = |(id, stream): (u32, &crate::stream::Stream)| Some((id, stream.stalled_ms?));
        let stalled: Vec<(u32, u64)> = self.table.iter().filter_map(since).collect();
        self.stall_check_ms = None;
        for (id, since_ms) in stalled {
            let due_ms = since_ms.saturating_add(limit_ms);
            if due_ms > now_ms {
                let next = self.stall_check_ms.map_or(due_ms, |at| at.min(due_ms));
                self.stall_check_ms = Some(next);
            } else if let Some(key) = self.table.key_of(StreamId(id).0) {
                self.abort_by_peer_fault(key);
            }
        }
    }
}

/// What the scheduler does with the stream in front.
enum Turn {
    Now,
    Behind,
    Over,
}
