//! What driver and handles share: the mux, the session, and who waits for what.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use culvert_mux::{Event, Mux, Read, Stats, StreamError, StreamId};
use culvert_proto::close::CloseReason;
use culvert_proto::open::{StreamHeader, StreamHeaderDecoder, StreamKind};
use culvert_proto::session::{Session, VerbError};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::control::{Control, STREAM, SessionEvent};
use super::error::{OpenError, reason_of};
use super::{End, HEADER_MS_MAX, LINGER_BYTES_MAX, LINGER_MS_MAX, Stream, Style};

/// Resets and last control messages.
const GOODBYE_BYTES_MAX: usize = 256 * 1024;

/// A stream that the hub opened.
pub struct Incoming {
    /// Its header; `None` on a Radar carrier.
    pub header: Option<StreamHeader>,
    /// The stream, positioned behind the header.
    pub stream: Stream,
}

/// The part that everyone holds.
pub(super) struct Shared {
    core: Mutex<Core>,
    started: Instant,
    accepted: Notify,
    told: Notify,
    over: Notify,
}

/// The part under the lock. It is never held across a system call or an await.
pub(super) struct Core {
    pub(super) mux: Mux,
    pub(super) end: End,
    pub(super) control: Option<Control>,
    streams: HashMap<u32, Entry, BuildHasherDefault<IdHasher>>,
    /// Agent: streams whose header is incomplete, oldest first in `header_deadlines`.
    headers: HashMap<u32, StreamHeaderDecoder, BuildHasherDefault<IdHasher>>,
    header_deadlines: VecDeque<(u64, StreamId)>,
    accepting: VecDeque<(Option<StreamHeader>, StreamId, Bytes)>,
    /// Dropped after `finish`: read until their end, or the deadline.
    lingering: HashMap<u32, usize, BuildHasherDefault<IdHasher>>,
    linger_deadlines: VecDeque<(u64, StreamId)>,
    pub(super) events: VecDeque<SessionEvent>,
    driver: Option<Waker>,
    /// The driver sleeps and has nothing to write: whoever queues something wakes it.
    pub(super) parked: bool,
    ended: Option<CloseReason>,
    draining: bool,
    rtt_ms: Option<u32>,
    /// Streams the agent said it takes.
    peer_streams_max: u32,
}

/// Who waits for one stream.
#[derive(Default)]
struct Entry {
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Why this end reset it, for the handle that still exists.
    cut: Option<CloseReason>,
    finished: bool,
}

/// Wakers to call once the lock is free, and what else changed.
#[derive(Default)]
pub(super) struct Wakes {
    pub(super) wakers: Vec<Waker>,
    pub(super) accepted: bool,
    pub(super) told: bool,
}

/// Stream ids come in order from one side: a multiplication spreads them.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Shared {
    pub(super) fn new(end: End, style: Style, mux: Mux) -> Shared {
        let control = match style {
            Style::Native(role, config) => Some(Control::new(role, config)),
            Style::Radar => None,
        };
        let mut core = Core {
            mux,
            end,
            control,
            streams: HashMap::default(),
            headers: HashMap::default(),
            header_deadlines: VecDeque::new(),
            accepting: VecDeque::new(),
            lingering: HashMap::default(),
            linger_deadlines: VecDeque::new(),
            events: VecDeque::new(),
            driver: None,
            parked: false,
            ended: None,
            draining: false,
            rtt_ms: None,
            peer_streams_max: u32::MAX,
        };
        // Before any other stream can be opened: its id is known to both ends. An error comes up
        // again, and ends the carrier, when the driver turns.
        let _ = core.open_control(0);
        Shared {
            core: Mutex::new(core),
            started: Instant::now(),
            accepted: Notify::new(),
            told: Notify::new(),
            over: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    /// Milliseconds since the carrier was made.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn instant(&self, at_ms: u64) -> Instant {
        self.started + std::time::Duration::from_millis(at_ms)
    }

    /// Calls what was collected under the lock.
    pub(super) fn wake(&self, wakes: &mut Wakes) {
        for waker in wakes.wakers.drain(..) {
            waker.wake();
        }
        if std::mem::take(&mut wakes.accepted) {
            self.accepted.notify_one();
        }
        if std::mem::take(&mut wakes.told) {
            self.told.notify_one();
        }
    }

    pub(super) fn open(
        shared: &Arc<Shared>,
        header: Option<&StreamHeader>,
    ) -> Result<Stream, OpenError> {
        let encoded = match header {
            Some(header) => header
                .encode()
                .map_err(|e| OpenError::new(CloseReason::Internal, &e))?,
            None => Bytes::new(),
        };
        let now_ms = shared.now_ms();
        let mut core = shared.lock();
        let id = core.open(now_ms, encoded)?;
        let driver = core.unpark();
        drop(core);
        wake(driver);
        Ok(Stream::new(shared.clone(), id, Bytes::new()))
    }

    pub(super) async fn accept(shared: &Arc<Shared>) -> Option<Incoming> {
        loop {
            let waiting = shared.accepted.notified();
            {
                let mut core = shared.lock();
                if let Some((header, id, prefix)) = core.accepting.pop_front() {
                    let more = !core.accepting.is_empty();
                    drop(core);
                    if more {
                        shared.accepted.notify_one();
                    }
                    return Some(Incoming {
                        header,
                        stream: Stream::new(shared.clone(), id, prefix),
                    });
                }
                if core.ended.is_some() {
                    // For the next one who waits.
                    shared.accepted.notify_one();
                    return None;
                }
            }
            waiting.await;
        }
    }

    pub(super) async fn event(&self) -> Option<SessionEvent> {
        loop {
            let waiting = self.told.notified();
            {
                let mut core = self.lock();
                if let Some(event) = core.events.pop_front() {
                    let more = !core.events.is_empty();
                    // The control stream may have been waiting for room.
                    let was_full = core.events.len() + 1 >= super::EVENTS_MAX;
                    let driver = if was_full { core.force_unpark() } else { None };
                    drop(core);
                    wake(driver);
                    if more {
                        self.told.notify_one();
                    }
                    return Some(event);
                }
                if core.ended.is_some() {
                    self.told.notify_one();
                    return None;
                }
            }
            waiting.await;
        }
    }

    pub(super) async fn closed(&self) -> CloseReason {
        loop {
            let waiting = self.over.notified();
            tokio::pin!(waiting);
            waiting.as_mut().enable();
            if let Some(reason) = self.lock().ended {
                return reason;
            }
            waiting.await;
        }
    }

    pub(super) fn close(&self, reason: CloseReason) {
        let mut wakes = Wakes::default();
        let mut core = self.lock();
        core.finish_all(reason, &mut wakes);
        let driver = core.force_unpark();
        drop(core);
        wake(driver);
        self.wake(&mut wakes);
        self.over.notify_waiters();
    }

    /// The connection is gone.
    pub(super) fn lost(&self, reason: CloseReason, wakes: &mut Wakes) {
        let mut core = self.lock();
        core.finish_all(reason, wakes);
        core.mux.carrier_lost();
        // Nobody wakes a driver that is no more.
        core.driver = None;
        core.parked = false;
        drop(core);
        self.wake(wakes);
        self.over.notify_waiters();
    }

    pub(super) fn cut(&self, id: StreamId, reason: CloseReason) {
        let mut wakes = Wakes::default();
        let mut core = self.lock();
        core.cut(id, reason, &mut wakes);
        let driver = core.unpark();
        drop(core);
        wake(driver);
        self.wake(&mut wakes);
    }

    /// Says GoAway 0.
    pub(super) fn retire(&self) {
        let mut core = self.lock();
        core.set_draining();
        core.mux.go_away(0);
        let driver = core.unpark();
        drop(core);
        wake(driver);
    }

    /// Runs a verb of the session and lets the driver send what came of it.
    pub(super) fn verb(
        &self,
        verb: impl FnOnce(&mut Session) -> Result<(), VerbError>,
    ) -> Result<(), VerbError> {
        let mut core = self.lock();
        let control = core.control.as_mut().ok_or(VerbError::NotNegotiated)?;
        verb(&mut control.session)?;
        let driver = core.force_unpark();
        drop(core);
        wake(driver);
        Ok(())
    }
}

pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Core {
    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    pub(super) fn set_draining(&mut self) {
        self.draining = true;
    }

    pub(super) fn set_peer_streams_max(&mut self, max: u32) {
        self.peer_streams_max = max;
    }

    pub(super) fn live_streams(&self) -> u32 {
        u32::try_from(self.streams.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn rtt_ms(&self) -> Option<u32> {
        self.rtt_ms
    }

    pub(super) fn set_rtt_ms(&mut self, rtt_ms: u64) {
        self.rtt_ms = Some(u32::try_from(rtt_ms).unwrap_or(u32::MAX));
    }

    pub(super) fn mux_stats(&self) -> Stats {
        self.mux.stats()
    }

    pub(super) fn largest_stalled(&self) -> Option<(StreamId, usize)> {
        self.mux.largest_stalled()
    }

    pub(super) fn ended(&self) -> Option<CloseReason> {
        self.ended
    }

    /// The driver's waker, if it sleeps and there is something to write.
    pub(super) fn unpark(&mut self) -> Option<Waker> {
        if self.parked && self.mux.wants_transmit() {
            self.force_unpark()
        } else {
            None
        }
    }

    /// The driver's waker, if it sleeps.
    pub(super) fn force_unpark(&mut self) -> Option<Waker> {
        // Blocked in a write it is not parked, and yet must hear of the end.
        if self.parked || self.ended.is_some() {
            self.parked = false;
            self.driver.clone()
        } else {
            None
        }
    }

    pub(super) fn set_driver(&mut self, waker: &Waker) {
        if !self.driver.as_ref().is_some_and(|old| old.will_wake(waker)) {
            self.driver = Some(waker.clone());
        }
    }

    fn open(&mut self, now_ms: u64, header: Bytes) -> Result<StreamId, OpenError> {
        if let Some(reason) = self.ended {
            return Err(OpenError::new(reason, "the carrier is closed"));
        }
        if self.control.is_some() == header.is_empty() {
            let problem = "culvert/1 streams need a header, others must have none";
            return Err(OpenError::new(CloseReason::Internal, problem));
        }
        if self.live_streams() >= self.peer_streams_max {
            let problem = format!("the agent takes {} streams", self.peer_streams_max);
            return Err(OpenError::new(CloseReason::TooManyStreams, &problem));
        }
        let id = self.mux.open(now_ms).map_err(|error| {
            let reason = match error {
                culvert_mux::OpenError::TooMany(_) => CloseReason::TooManyStreams,
                culvert_mux::OpenError::Budget { .. } => CloseReason::Overload,
                culvert_mux::OpenError::GoneAway => CloseReason::AgentDraining,
                culvert_mux::OpenError::IdsExhausted => CloseReason::StaleEpoch,
            };
            OpenError::new(reason, &error)
        })?;
        if !header.is_empty() && self.mux.write(id, header).is_err() {
            self.mux.reset(id);
            return Err(OpenError::new(
                CloseReason::Internal,
                "a new stream takes no header",
            ));
        }
        self.streams.insert(id.0, Entry::default());
        Ok(id)
    }

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
                    let entry = self.streams.get_mut(&id.0);
                    wakes.wakers.extend(entry.and_then(|e| e.writer.take()));
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
                Event::Pong { rtt_ms } => self.set_rtt_ms(rtt_ms),
            }
        }
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
            wakes.wakers.extend(entry.reader.take());
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
            wakes.wakers.extend(entry.reader.take());
            wakes.wakers.extend(entry.writer.take());
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
    fn read_away(&mut self, id: StreamId) {
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

    // === what streams do ===

    /// Why a handle's operation failed: the end of the carrier, or of this stream.
    pub(super) fn error(&self, id: StreamId, error: StreamError) -> CloseReason {
        self.ended
            .or_else(|| self.streams.get(&id.0).and_then(|entry| entry.cut))
            .unwrap_or_else(|| reason_of(error, self.end))
    }

    pub(super) fn wait_readable(&mut self, id: StreamId, waker: &Waker) {
        if let Some(entry) = self.streams.get_mut(&id.0) {
            replace(&mut entry.reader, waker);
        }
    }

    pub(super) fn wait_writable(&mut self, id: StreamId, waker: &Waker) {
        if let Some(entry) = self.streams.get_mut(&id.0) {
            replace(&mut entry.writer, waker);
        }
    }

    pub(super) fn finish(&mut self, id: StreamId) {
        if let Some(entry) = self.streams.get_mut(&id.0)
            && !std::mem::replace(&mut entry.finished, true)
        {
            self.mux.finish(id);
        }
    }

    pub(super) fn cut(&mut self, id: StreamId, reason: CloseReason, wakes: &mut Wakes) {
        let Some(entry) = self.streams.get_mut(&id.0) else {
            return;
        };
        entry.cut.get_or_insert(reason);
        wakes.wakers.extend(entry.reader.take());
        wakes.wakers.extend(entry.writer.take());
        self.mux.reset(id);
    }

    /// The handle is gone. A finished stream waits for the peer's end; any other is reset.
    pub(super) fn dropped(&mut self, now_ms: u64, id: StreamId) {
        let Some(entry) = self.streams.remove(&id.0) else {
            return;
        };
        if entry.finished && entry.cut.is_none() && self.ended.is_none() {
            self.lingering.insert(id.0, LINGER_BYTES_MAX);
            let deadline_ms = now_ms + LINGER_MS_MAX;
            self.linger_deadlines.push_back((deadline_ms, id));
            self.read_away(id);
        } else {
            self.mux.release(id);
        }
    }

    /// What leaves after the end of all streams: the session's BYE, their resets, and a GoAway that
    /// says whose fault it is.
    pub(super) fn say_goodbye(&mut self, now_ms: u64, reason: CloseReason, out: &mut Vec<Bytes>) {
        let held = self
            .streams
            .keys()
            .chain(self.lingering.keys())
            .chain(self.headers.keys());
        for id in held {
            self.mux.reset(StreamId(*id));
        }
        self.lingering.clear();
        self.headers.clear();
        self.flush_control();
        // A GoAway with a code ends the control stream too: BYE has to be out before.
        self.mux.transmit(now_ms, out, GOODBYE_BYTES_MAX);
        let is_violation = matches!(reason, CloseReason::Protocol | CloseReason::RateViolation);
        self.mux.go_away(u32::from(is_violation));
    }

    pub(super) fn flush_control(&mut self) {
        if let Some(control) = &mut self.control {
            control.say_all();
            control.flush(&mut self.mux);
        }
    }

    /// Ends everything for all handles. The first reason stays.
    pub(super) fn finish_all(&mut self, reason: CloseReason, wakes: &mut Wakes) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(reason);
        for entry in self.streams.values_mut() {
            wakes.wakers.extend(entry.reader.take());
            wakes.wakers.extend(entry.writer.take());
        }
        for (_, id, _) in self.accepting.drain(..) {
            self.streams.remove(&id.0);
        }
        wakes.accepted = true;
        wakes.told = true;
    }
}

fn replace(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(old) if old.will_wake(waker) => {}
        _ => *place = Some(waker.clone()),
    }
}
