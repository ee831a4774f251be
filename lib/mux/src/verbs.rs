//! What a caller does with one stream.

use bytes::{BufMut, Bytes};

use crate::frame::SYN;
use crate::stream::{Key, Sending, Stream};
use crate::{Mux, OpenError, Pressure, Read, StreamError, StreamId, Write};

impl Mux {
    /// Opens a stream; its SYN goes out with the next transmit, together with what is written
    /// until then.
    ///
    /// # Errors
    /// The session lives on whatever the error.
    pub fn open(&mut self, now_ms: u64) -> Result<StreamId, OpenError> {
        self.now_ms = self.now_ms.max(now_ms);
        if self.leaving || self.left {
            return Err(OpenError::GoneAway);
        }
        let places_left = self.table.len() < self.slots_max();
        if self.live >= self.config.streams_max || !places_left {
            return Err(OpenError::TooMany(self.config.streams_max));
        }
        let budget = &self.account.budget;
        if budget.pressure() >= Pressure::NoStreams {
            return Err(OpenError::Budget {
                used: budget.used(),
                limit: budget.limit(),
            });
        }
        let id = self.next_id.ok_or(OpenError::IdsExhausted)?;
        self.next_id = id.checked_add(2);
        let stream = Stream::new(self.config.window_initial, SYN, now_ms);
        let key = self.table.insert(id, stream);
        self.live += 1;
        self.stats.opened_local += 1;
        self.notice(key);
        Ok(StreamId(id))
    }

    /// Queues `data`, as much as the send gate takes, without a copy unless it is small.
    ///
    /// # Errors
    /// When the stream was aborted, finished by this side, or released.
    pub fn write(&mut self, id: StreamId, mut data: Bytes) -> Result<Write, StreamError> {
        let (key, room) = self.room(id)?;
        let rest = data.split_off(room.min(data.len()));
        if !data.is_empty() {
            self.account.add(data.len());
            if let Some(stream) = self.table.get_mut(key) {
                stream.outbox.push(data, &mut self.pool);
            }
            self.activate(key);
        }
        if rest.is_empty() {
            return Ok(Write::Accepted);
        }
        self.block(key);
        Ok(Write::Blocked(rest))
    }

    /// Copies as much of `data` as the send gate takes; returns how much. 0 = blocked, and
    /// [`Event::Writable`](crate::Event::Writable) will follow. Cheaper than [`Mux::write`] where
    /// the bytes are borrowed.
    ///
    /// # Errors
    /// As [`Mux::write`].
    pub fn write_slice(&mut self, id: StreamId, data: &[u8]) -> Result<usize, StreamError> {
        let (key, room) = self.room(id)?;
        let taken = room.min(data.len());
        if taken > 0 {
            self.account.add(taken);
            if let Some(stream) = self.table.get_mut(key) {
                stream.outbox.push_slice(&data[..taken], &mut self.pool);
            }
            self.activate(key);
        } else if !data.is_empty() {
            self.block(key);
        }
        Ok(taken)
    }

    fn room(&self, id: StreamId) -> Result<(Key, usize), StreamError> {
        let (key, stream) = self.held(id)?;
        if let Some(error) = stream.error() {
            return Err(error);
        }
        if stream.sending != Sending::Open {
            return Err(StreamError::Finished);
        }
        Ok((
            key,
            self.config
                .send_gate_bytes
                .saturating_sub(stream.outbox.queued()),
        ))
    }

    fn block(&mut self, key: Key) {
        if let Some(stream) = self.table.get_mut(key) {
            stream.writer_waits = true;
        }
    }

    /// FIN after what is queued. Reading goes on.
    pub fn finish(&mut self, id: StreamId) {
        let Some(key) = self.table.key_of(id.0) else {
            return;
        };
        let Some(stream) = self.table.get_mut(key) else {
            return;
        };
        if stream.sending == Sending::Open && stream.end.is_none() {
            stream.sending = Sending::Finishing;
            self.activate(key);
        }
    }

    /// RST; drops all that is queued and unread. The id is unknown afterwards.
    pub fn reset(&mut self, id: StreamId) {
        if let Some(key) = self.table.key_of(id.0) {
            self.abort(key);
        }
    }

    /// At most `max` bytes, without a copy unless they are few.
    ///
    /// # Errors
    /// When the stream was aborted before the peer finished, or released.
    pub fn read(&mut self, id: StreamId, max: usize) -> Result<Read, StreamError> {
        let key = self.readable(id)?;
        let Some(stream) = self.table.get_mut(key) else {
            return Ok(Read::Pending);
        };
        let before = stream.unread_charge();
        if let Some(data) = stream.inbox.read(max.max(1), &mut self.pool) {
            self.consumed(key, before);
            return Ok(Read::Data(data));
        }
        if stream.received_fin {
            return Ok(Read::Eof);
        }
        stream.reader_waits = true;
        Ok(Read::Pending)
    }

    /// Fills `buf`, which has room, as far as there are bytes; returns how many. `None` = pending,
    /// 0 = end of stream. Cheaper than [`Mux::read`] where the bytes are copied anyway.
    ///
    /// # Errors
    /// As [`Mux::read`].
    pub fn read_buf(
        &mut self,
        id: StreamId,
        buf: &mut impl BufMut,
    ) -> Result<Option<usize>, StreamError> {
        let key = self.readable(id)?;
        let Some(stream) = self.table.get_mut(key) else {
            return Ok(None);
        };
        let before = stream.unread_charge();
        let filled = stream.inbox.read_buf(buf, &mut self.pool);
        if filled > 0 {
            self.consumed(key, before);
            return Ok(Some(filled));
        }
        if stream.received_fin {
            return Ok(Some(0));
        }
        stream.reader_waits = true;
        Ok(None)
    }

    fn readable(&self, id: StreamId) -> Result<Key, StreamError> {
        let (key, stream) = self.held(id)?;
        match stream.error() {
            Some(error) if !stream.received_fin => Err(error),
            _ => Ok(key),
        }
    }

    /// The reader took bytes: memory is returned, and credit when enough came together.
    fn consumed(&mut self, key: Key, charged_before: usize) {
        let Some(stream) = self.table.get_mut(key) else {
            return;
        };
        self.account.sub(charged_before - stream.unread_charge());
        let wants_more = !stream.received_fin && stream.end.is_none();
        if wants_more && stream.window.is_due(stream.inbox.unread()) {
            self.notice(key);
        }
    }

    /// The caller's handle is gone. What both sides finished is forgotten once its queue is sent;
    /// anything else is reset.
    pub fn release(&mut self, id: StreamId) {
        let Ok((key, stream)) = self.held(id) else {
            return;
        };
        let sent_soon = stream.received_fin && stream.sending == Sending::Finishing;
        if !sent_soon || stream.end.is_some() {
            self.abort(key);
        } else if let Some(stream) = self.table.get_mut(key) {
            stream.drop_unread(&mut self.account, &mut self.pool);
            stream.close_window(&mut self.account);
            stream.released = true;
        }
    }

    fn held(&self, id: StreamId) -> Result<(Key, &Stream), StreamError> {
        let unknown = StreamError::Unknown(id.0);
        let key = self.table.key_of(id.0).ok_or(unknown)?;
        let stream = self
            .table
            .get(key)
            .filter(|stream| !stream.released)
            .ok_or(unknown)?;
        Ok((key, stream))
    }
}
