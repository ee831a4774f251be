//! What the mux tells: new streams and their headers, ends, and streams that nobody holds any more.

use bytes::Bytes;
use culvert_mux::{Event, Read, StreamId};
use culvert_proto::close::CloseReason;
use culvert_proto::open::{StreamHeader, StreamHeaderDecoder, StreamKind};

use super::HEADER_MS_MAX;
use super::control::{STREAM, SessionEvent};
use super::core::{Core, Entry};
use super::shared::Wakes;

impl Core {
    /// Distributes what the mux has to say. `Err` = the carrier must end.
    pub(super) fn drain_events(
        &mut self,
        now_ms: u64,
        wakes: &mut Wakes,
    ) -> Result<(), (CloseReason, String)> {
        while let Some(event) = self.mux.next_event() {
            match event {
                Event::Opened(id) => self.opened(now_ms, id, wakes)?,
                Event::Readable(id) => self.readable(id, wakes)?,
                Event::Writable(id) => {
                    if let Some(entry) = self.streams.get_mut(&id.0) {
                        entry.wake_writer(wakes);
                    }
                }
                Event::Ended(id, _) if self.control_stream() == Some(id) => {
                    let problem = "the peer reset the control stream".to_owned();
                    return Err((CloseReason::Protocol, problem));
                }
                Event::Ended(id, _) => self.stream_ended(id, wakes),
                Event::GoAway(0) => {
                    self.draining = true;
                    self.events.push_back(SessionEvent::PeerDraining);
                    wakes.told = true;
                }
                Event::GoAway(code) => {
                    let problem = format!("the peer ended the session with GoAway code {code}");
                    return Err((CloseReason::Protocol, problem));
                }
                Event::Heard => self.heard = true,
                Event::Pong { rtt_ms } => self.set_rtt_ms(rtt_ms),
            }
        }
        self.wake_leaver(wakes);
        Ok(())
    }

    fn control_stream(&self) -> Option<StreamId> {
        self.control.as_ref().map(|_| STREAM)
    }

    fn opened(
        &mut self,
        now_ms: u64,
        id: StreamId,
        wakes: &mut Wakes,
    ) -> Result<(), (CloseReason, String)> {
        if self.control.is_none() {
            self.enqueue(None, id, Bytes::new(), wakes);
            return Ok(());
        }
        self.headers.insert(id.0, StreamHeaderDecoder::new());
        let deadline_ms = now_ms + HEADER_MS_MAX;
        self.header_deadlines.push_back((deadline_ms, id));
        self.read_header(id, wakes)
    }

    fn readable(&mut self, id: StreamId, wakes: &mut Wakes) -> Result<(), (CloseReason, String)> {
        if let Some(entry) = self.streams.get_mut(&id.0) {
            entry.wake_reader(wakes);
            return Ok(());
        }
        if self.lingering.contains_key(&id.0) {
            self.read_away(id);
            return Ok(());
        }
        // The control stream is read whenever the driver turns.
        if self.headers.contains_key(&id.0) {
            self.read_header(id, wakes)
        } else {
            Ok(())
        }
    }

    fn stream_ended(&mut self, id: StreamId, wakes: &mut Wakes) {
        if let Some(entry) = self.streams.get_mut(&id.0) {
            entry.wake_both(wakes);
        } else if self.headers.remove(&id.0).is_some() || self.lingering.remove(&id.0).is_some() {
            self.mux.release(id);
        }
    }

    /// Agent: the header of a new stream, as far as it has arrived.
    fn read_header(
        &mut self,
        id: StreamId,
        wakes: &mut Wakes,
    ) -> Result<(), (CloseReason, String)> {
        while let Some(decoder) = self.headers.get_mut(&id.0) {
            let mut data = match self.mux.read(id, usize::from(u16::MAX)) {
                Ok(Read::Data(data)) => data,
                Ok(Read::Pending) => return Ok(()),
                Ok(Read::Eof) | Err(_) => {
                    self.headers.remove(&id.0);
                    self.mux.release(id);
                    return Ok(());
                }
            };
            match decoder.push(&mut data) {
                Ok(None) => {}
                Ok(Some(header)) => {
                    self.headers.remove(&id.0);
                    return self.headed(header, id, data, wakes);
                }
                Err(error) => {
                    return Err((CloseReason::Protocol, format!("stream header: {error}")));
                }
            }
        }
        Ok(())
    }

    fn headed(
        &mut self,
        header: StreamHeader,
        id: StreamId,
        rest: Bytes,
        wakes: &mut Wakes,
    ) -> Result<(), (CloseReason, String)> {
        match (
            header.kind == StreamKind::Control,
            id == STREAM,
            &mut self.control,
        ) {
            (true, true, Some(control)) => {
                control.accepted(rest);
                Ok(())
            }
            (false, false, _) => {
                self.enqueue(Some(header), id, rest, wakes);
                Ok(())
            }
            _ => {
                let problem = format!("stream {id} is of the wrong kind; 1 is the control stream");
                Err((CloseReason::Protocol, problem))
            }
        }
    }

    fn enqueue(
        &mut self,
        header: Option<StreamHeader>,
        id: StreamId,
        rest: Bytes,
        wakes: &mut Wakes,
    ) {
        self.streams.insert(id.0, Entry::default());
        self.accepting.push_back((header, id, rest));
        wakes.accepted = true;
    }

    /// Reads a stream nobody holds any more up to its end.
    pub(super) fn read_away(&mut self, id: StreamId) {
        let Some(left) = self.lingering.get_mut(&id.0) else {
            return;
        };
        loop {
            match self.mux.read(id, *left) {
                Ok(Read::Data(data)) if data.len() < *left => *left -= data.len(),
                Ok(Read::Pending) => return,
                Ok(Read::Data(_) | Read::Eof) | Err(_) => break,
            }
        }
        self.lingering.remove(&id.0);
        // At its end this forgets it; elsewhere it resets it.
        self.mux.release(id);
    }

    /// When [`Core::expire`] has something to do.
    pub(super) fn next_expiry_ms(&mut self) -> Option<u64> {
        while let Some((_, id)) = self.header_deadlines.front()
            && !self.headers.contains_key(&id.0)
        {
            self.header_deadlines.pop_front();
        }
        while let Some((_, id)) = self.linger_deadlines.front()
            && !self.lingering.contains_key(&id.0)
        {
            self.linger_deadlines.pop_front();
        }
        let header = self.header_deadlines.front().map(|(at, _)| *at);
        let linger = self.linger_deadlines.front().map(|(at, _)| *at);
        header.into_iter().chain(linger).min()
    }

    /// Resets streams whose header did not come, or whose end did not.
    pub(super) fn expire(&mut self, now_ms: u64) {
        while let Some((at, id)) = self.header_deadlines.front().copied()
            && at <= now_ms
        {
            self.header_deadlines.pop_front();
            if self.headers.remove(&id.0).is_some() {
                self.mux.reset(id);
                self.mux.release(id);
            }
        }
        while let Some((at, id)) = self.linger_deadlines.front().copied()
            && at <= now_ms
        {
            self.linger_deadlines.pop_front();
            if self.lingering.remove(&id.0).is_some() {
                self.mux.release(id);
            }
        }
    }
}
