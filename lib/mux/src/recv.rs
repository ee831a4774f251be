//! From the carrier: frames, split anywhere, from a peer that may lie.

use alloc::vec::Vec;
use bytes::Bytes;

use crate::frame::{ACK, FIN, HEADER_BYTES, Header, Kind, RST, SYN};
use crate::mux::{Farewell, Life};
use crate::stream::{Key, Stream, told};
use crate::{End, Event, Mux, Role, Violation};

/// Streams that lag behind the carrier by two of these let go of its buffers.
const PIN_EPOCH_BYTES: u64 = 64 << 10;

/// Where in a frame the last call ended.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    partial: [u8; HEADER_BYTES],
    partial_length: usize,
    body: Option<Body>,
}

#[derive(Debug, Clone, Copy)]
struct Body {
    /// `None`: nobody wants these bytes.
    to: Option<Key>,
    remaining: usize,
    fin: bool,
}

/// Streams that hold slices of shared buffers, by the epoch in which they began to.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    /// Received bytes in [`PIN_EPOCH_BYTES`].
    epoch: u64,
    /// Of the even and the odd epoch.
    streams: [Vec<Key>; 2],
}

impl Pins {
    fn note(&mut self, key: Key) {
        self.of(self.epoch).push(key);
    }

    fn of(&mut self, epoch: u64) -> &mut Vec<Key> {
        &mut self.streams[usize::from(!epoch.is_multiple_of(2))]
    }
}

impl Mux {
    /// Takes bytes from the carrier, split anywhere. The buffers behind `data` should be full of
    /// it: readers that have not come yet hold up to 128 KiB of them.
    ///
    /// # Errors
    /// The peer broke the protocol or a limit. Every stream has ended; transmit what is queued,
    /// then close the carrier.
    #[expect(clippy::needless_pass_by_value, reason = "streams keep slices of it")]
    pub fn receive(&mut self, now_ms: u64, data: Bytes) -> Result<(), Violation> {
        match self.life {
            Life::Open => {}
            Life::Broken(violation) => return Err(violation),
            Life::Over => return Ok(()),
        }
        if data.is_empty() {
            return Ok(());
        }
        self.now_ms = self.now_ms.max(now_ms);
        self.stats.last_received_ms = Some(now_ms);
        self.unpin_laggards();
        self.stats.bytes_received += data.len() as u64;
        let result = self.decode(now_ms, &data);
        if let Err(violation) = result {
            self.break_off(violation);
        }
        result
    }

    /// A reader that lags by an epoch or two gets its bytes copied out of the carrier's buffers.
    fn unpin_laggards(&mut self) {
        let before = self.pins.epoch;
        let now = self.stats.bytes_received / PIN_EPOCH_BYTES;
        self.pins.epoch = now;
        for epoch in (before + 1..=now).take(2) {
            let mut laggards = core::mem::take(self.pins.of(epoch));
            for key in laggards.drain(..) {
                if let Some(stream) = self.table.get_mut(key)
                    && stream
                        .inbox
                        .pinned_since()
                        .is_some_and(|since| since + 2 <= now)
                {
                    stream.inbox.unpin(&mut self.pool);
                }
            }
            *self.pins.of(epoch) = laggards;
        }
    }

    fn decode(&mut self, now_ms: u64, data: &Bytes) -> Result<(), Violation> {
        let mut at = 0;
        while at < data.len() && self.life == Life::Open {
            if let Some(body) = self.decoder.body {
                let length = body.remaining.min(data.len() - at);
                self.take_body(body, data, at, at + length);
                at += length;
                continue;
            }
            let held = self.decoder.partial_length;
            let length = (HEADER_BYTES - held).min(data.len() - at);
            self.decoder.partial[held..held + length].copy_from_slice(&data[at..at + length]);
            at += length;
            self.decoder.partial_length = held + length;
            if self.decoder.partial_length == HEADER_BYTES {
                self.decoder.partial_length = 0;
                self.on_header(now_ms, Header::decode(self.decoder.partial)?)?;
            }
        }
        Ok(())
    }

    fn on_header(&mut self, now_ms: u64, header: Header) -> Result<(), Violation> {
        match header.kind {
            Kind::Data | Kind::WindowUpdate => self.on_stream_frame(now_ms, header),
            Kind::Ping => self.on_ping(now_ms, header),
            Kind::GoAway => {
                self.peer_went_away(header.length);
                Ok(())
            }
        }
    }

    fn on_ping(&mut self, now_ms: u64, header: Header) -> Result<(), Violation> {
        if header.has(SYN) {
            if !self.pings_in.take(now_ms) {
                return Err(Violation::PingRate(self.pings_in.per_second()));
            }
            self.pongs_out.push(header.length);
        } else if header.has(ACK) {
            if self.farewell == Farewell::Sent(header.length) {
                self.farewell = Farewell::None;
                self.tell_session(Event::Heard);
            }
            if let Some(rtt_ms) = self.pinger.answer(header.length, now_ms) {
                self.tell_session(Event::Pong { rtt_ms });
            }
        }
        Ok(())
    }

    fn on_stream_frame(&mut self, now_ms: u64, header: Header) -> Result<(), Violation> {
        if header.has(SYN) {
            self.on_syn(now_ms, header)?;
        }
        if header.has(RST) && !self.resets_in.take(now_ms) {
            return Err(Violation::ResetRate(self.resets_in.per_second()));
        }
        let key = self.table.key_of(header.id);
        let is_live = |key: &Key| {
            self.table
                .get(*key)
                .is_some_and(|stream| stream.end.is_none())
        };
        match (key.filter(is_live), header.kind) {
            (None, _) => self.on_stranger(now_ms, header, key.is_some()),
            (Some(key), _) if header.has(RST) => {
                self.end_stream(key, End::Reset);
                self.skip_body(header);
                Ok(())
            }
            (Some(key), Kind::Data) => self.on_data(key, header),
            (Some(key), _) => self.on_credit(key, header),
        }
    }

    /// A new stream, or its refusal. Afterwards the id is used, either way.
    fn on_syn(&mut self, now_ms: u64, header: Header) -> Result<(), Violation> {
        let id = header.id;
        if !self.opens.take(now_ms) {
            return Err(Violation::OpenRate(self.opens.per_second()));
        }
        if self.is_ours(id) {
            return Err(Violation::Parity(id));
        }
        if !self.seen.insert(id) {
            return Err(Violation::IdReuse(id));
        }
        if header.has(RST) {
            return Ok(());
        }
        // What crossed our GoAway(0) on the wire is still taken: the peer could not know.
        let welcome = self.config.accept_streams
            && self.live < self.config.streams_max
            && self.table.len() < self.slots_max()
            && self.account.budget.pressure() < crate::Pressure::NoStreams;
        if !welcome {
            self.stats.refused += 1;
            return self.refuse(id);
        }
        let key = self
            .table
            .insert(id, Stream::new(self.config.window_initial, ACK, now_ms));
        self.live += 1;
        self.stats.opened_remote += 1;
        if self.config.ack_at_once {
            self.notice(key);
        }
        self.tell(key, told::OPENED);
        Ok(())
    }

    fn refuse(&mut self, id: u32) -> Result<(), Violation> {
        if self.resets_out.len() >= self.resets_max() {
            return Err(Violation::ResetBacklog(self.resets_out.len()));
        }
        self.resets_out.push_back(id);
        Ok(())
    }

    fn is_ours(&self, id: u32) -> bool {
        id.is_multiple_of(2) == (self.config.role == Role::Server)
    }

    /// A frame for a stream that is not, or no longer. Whoever left a stream has told the peer by
    /// FIN or RST, so only an id that never was is answered: once.
    fn on_stranger(
        &mut self,
        now_ms: u64,
        header: Header,
        is_ended: bool,
    ) -> Result<(), Violation> {
        let id = header.id;
        // No peer ever held more credit than this for any stream.
        let credit = self.config.window_max;
        if header.kind == Kind::Data && header.length > credit {
            return Err(Violation::CreditOverrun {
                id,
                length: header.length,
                credit,
            });
        }
        if self.is_ours(id) {
            if self.next_id.is_some_and(|next| id >= next) {
                return Err(Violation::Unopened(id));
            }
        } else if !is_ended && !self.seen.contains(id) {
            if !self.opens.take(now_ms) {
                return Err(Violation::OpenRate(self.opens.per_second()));
            }
            self.seen.insert(id);
            if !header.has(RST) {
                self.refuse(id)?;
            }
        }
        self.skip_body(header);
        Ok(())
    }

    fn skip_body(&mut self, header: Header) {
        if header.kind == Kind::Data && header.length > 0 {
            let remaining = header.length as usize;
            self.decoder.body = Some(Body {
                to: None,
                remaining,
                fin: false,
            });
        }
    }

    fn on_data(&mut self, key: Key, header: Header) -> Result<(), Violation> {
        let Some(stream) = self.table.get_mut(key) else {
            return Ok(());
        };
        let (id, length) = (header.id, header.length);
        let credit = stream.window.credit;
        let left =
            credit
                .checked_sub(length)
                .ok_or(Violation::CreditOverrun { id, length, credit })?;
        if length == 0 {
            if header.has(FIN) {
                self.on_fin(key);
            }
            return Ok(());
        }
        if stream.received_fin || stream.released {
            // Go peers can race a write against a close: that stream is wrong, not the session.
            self.abort_by_peer_fault(key);
            self.skip_body(header);
            return Ok(());
        }
        stream.window.spend(left, self.now_ms);
        let remaining = length as usize;
        self.decoder.body = Some(Body {
            to: Some(key),
            remaining,
            fin: header.has(FIN),
        });
        Ok(())
    }

    /// Resets a stream on both sides; its handle learns of it.
    pub(crate) fn abort_by_peer_fault(&mut self, key: Key) {
        if self.table.get(key).is_some_and(|stream| !stream.is_over()) {
            self.resets_out.push_back(key.id);
        }
        self.end_stream(key, End::Reset);
    }

    fn take_body(&mut self, mut body: Body, data: &Bytes, from: usize, to: usize) {
        body.remaining -= to - from;
        let whole = body.remaining == 0;
        self.decoder.body = (!whole).then_some(body);
        let Some(key) = body.to else { return };
        let Some(stream) = self
            .table
            .get_mut(key)
            .filter(|stream| stream.end.is_none())
        else {
            return;
        };
        let before = stream.unread_charge();
        if stream
            .inbox
            .push(data, from, to, self.pins.epoch, &mut self.pool)
        {
            self.pins.note(key);
        }
        self.account.add(stream.unread_charge() - before);
        let wake = core::mem::take(&mut stream.reader_waits);
        if wake {
            self.tell(key, told::READABLE);
        }
        if whole && body.fin {
            self.on_fin(key);
        }
    }

    fn on_fin(&mut self, key: Key) {
        let Some(stream) = self.table.get_mut(key) else {
            return;
        };
        if stream.received_fin {
            return;
        }
        stream.received_fin = true;
        let wake = core::mem::take(&mut stream.reader_waits);
        if wake {
            self.tell(key, told::READABLE);
        }
        self.note_finished(key);
    }

    fn on_credit(&mut self, key: Key, header: Header) -> Result<(), Violation> {
        let Some(stream) = self.table.get_mut(key) else {
            return Ok(());
        };
        let (id, delta, credit) = (header.id, header.length, stream.credit);
        stream.credit =
            credit
                .checked_add(delta)
                .ok_or(Violation::CreditOverflow { id, credit, delta })?;
        if delta > 0 {
            stream.stalled_ms = None;
        }
        self.activate(key);
        if header.has(FIN) {
            self.on_fin(key);
        }
        Ok(())
    }
}
