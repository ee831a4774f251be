//! The state under the lock: the mux, the session, and who waits for which stream.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::task::Waker;

use bytes::Bytes;
use culvert_mux::{Mux, Stats, StreamError, StreamId};
use culvert_proto::close::CloseReason;
use culvert_proto::open::{StreamHeader, StreamHeaderDecoder};

use super::control::{Control, SessionEvent};
use super::error::{OpenError, reason_of};
use super::shared::Wakes;
use super::{End, LINGER_BYTES_MAX, LINGER_MS_MAX, Style};

/// Places for streams that stay allocated when there are none.
const STREAMS_KEPT: usize = 16;
/// Resets and last control messages.
const GOODBYE_BYTES_MAX: usize = 256 * 1024;

/// The part under the lock. It is never held across a system call or an await.
pub(super) struct Core {
    pub(super) mux: Mux,
    pub(super) end: End,
    pub(super) control: Option<Control>,
    pub(super) streams: HashMap<u32, Entry, BuildHasherDefault<IdHasher>>,
    /// Agent: streams whose header is incomplete, oldest first in `header_deadlines`.
    pub(super) headers: HashMap<u32, StreamHeaderDecoder, BuildHasherDefault<IdHasher>>,
    pub(super) header_deadlines: VecDeque<(u64, StreamId)>,
    pub(super) accepting: VecDeque<(Option<StreamHeader>, StreamId, Bytes)>,
    /// Dropped after `finish`: read until their end, or the deadline.
    pub(super) lingering: HashMap<u32, usize, BuildHasherDefault<IdHasher>>,
    pub(super) linger_deadlines: VecDeque<(u64, StreamId)>,
    pub(super) events: VecDeque<SessionEvent>,
    pub(super) driver: Option<Waker>,
    /// The driver sleeps and has nothing to write: whoever queues something wakes it.
    pub(super) parked: bool,
    pub(super) ended: Option<CloseReason>,
    pub(super) draining: bool,
    /// The other end knows that this one leaves.
    pub(super) heard: bool,
    /// Who waits in [`Carrier::heard`](super::Carrier::heard) or
    /// [`Carrier::idle`](super::Carrier::idle): one task.
    pub(super) leaver: Option<Waker>,
    pub(super) rtt_ms: Option<u32>,
    /// Streams the agent said it takes.
    pub(super) peer_streams_max: u32,
}

/// Who waits for one stream.
#[derive(Default)]
pub(super) struct Entry {
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Why this end reset it, for the handle that still exists.
    cut: Option<CloseReason>,
    finished: bool,
}

impl Entry {
    pub(super) fn wake_reader(&mut self, wakes: &mut Wakes) {
        wakes.wakers.extend(self.reader.take());
    }

    pub(super) fn wake_writer(&mut self, wakes: &mut Wakes) {
        wakes.wakers.extend(self.writer.take());
    }

    pub(super) fn wake_both(&mut self, wakes: &mut Wakes) {
        self.wake_reader(wakes);
        self.wake_writer(wakes);
    }
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

impl Core {
    pub(super) fn new(end: End, style: Style, mux: Mux) -> Core {
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
            heard: false,
            leaver: None,
            rtt_ms: None,
            peer_streams_max: u32::MAX,
        };
        // Before any other stream can be opened: its id is known to both ends. An error comes up
        // again, and ends the carrier, when the driver turns.
        let _ = core.open_control(0);
        core
    }

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
        // A finished stream lives until its bytes have left and the peer's end has come.
        u32::try_from(self.streams.len() + self.lingering.len()).unwrap_or(u32::MAX)
    }

    /// No stream lives, and none whose header is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.streams.is_empty() && self.lingering.is_empty() && self.headers.is_empty()
    }

    /// Whoever leaves looks again.
    pub(super) fn wake_leaver(&mut self, wakes: &mut Wakes) {
        if self.heard || self.is_idle() || self.ended.is_some() {
            wakes.wakers.extend(self.leaver.take());
        }
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

    pub(super) fn open(&mut self, now_ms: u64, header: Bytes) -> Result<StreamId, OpenError> {
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
        if let Some(control) = &mut self.control {
            control.session.on_opened();
        }
        self.streams.insert(id.0, Entry::default());
        Ok(id)
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
        entry.wake_both(wakes);
        self.mux.reset(id);
    }

    /// The handle is gone. A finished stream waits for the peer's end; any other is reset.
    pub(super) fn dropped(&mut self, now_ms: u64, id: StreamId) {
        let Some(entry) = self.streams.remove(&id.0) else {
            return;
        };
        // An idle carrier does not keep the memory of its busiest minute.
        if self.streams.is_empty() && self.streams.capacity() > STREAMS_KEPT {
            self.streams.shrink_to(STREAMS_KEPT);
        }
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
            entry.wake_both(wakes);
        }
        for (_, id, _) in self.accepting.drain(..) {
            self.streams.remove(&id.0);
        }
        self.wake_leaver(wakes);
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
