//! The session: what it is made of, its verbs, its events, its end.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::BytesMut;

use crate::budget::{Account, Budget};
use crate::buffers::Chunks;
use crate::frame::{GO_AWAY_NORMAL, GO_AWAY_PROTOCOL};
use crate::ids::SeenIds;
use crate::rates::Bucket;
use crate::recv::{Decoder, Pins};
use crate::rtt::{Pinger, Pongs};
use crate::send::Pace;
use crate::stream::{Key, Line, Place, Table, told};
use crate::{Config, End, Event, Role, Stats, StreamId, Violation, WIRE_WINDOW_BYTES};

/// Waiting resets beyond the stream limit that a peer may provoke.
const RESETS_SPARE_MAX: usize = 1_024;

/// One end of one session.
pub struct Mux {
    pub(crate) config: Config,
    pub(crate) table: Table,
    pub(crate) account: Account,
    pub(crate) pool: Chunks,
    pub(crate) decoder: Decoder,
    pub(crate) pins: Pins,
    pub(crate) seen: SeenIds,
    pub(crate) opens: Bucket,
    pub(crate) resets_in: Bucket,
    pub(crate) pings_in: Bucket,
    pub(crate) pinger: Pinger,
    pub(crate) farewell: Farewell,
    /// The next id that we open; `None` when all are used.
    pub(crate) next_id: Option<u32>,
    /// Streams that are not over.
    pub(crate) live: u32,
    pub(crate) life: Life,
    /// GoAway was sent: streams of the peer are refused.
    pub(crate) leaving: bool,
    /// GoAway was received: the peer would refuse ours.
    pub(crate) left: bool,
    /// The latest time that any call told.
    pub(crate) now_ms: u64,

    // What waits for transmit, in this order.
    pub(crate) go_away_out: Option<u32>,
    pub(crate) pongs_out: Pongs,
    pub(crate) resets_out: VecDeque<u32>,
    pub(crate) notices: Line,
    pub(crate) first: Option<Key>,
    pub(crate) fresh: Line,
    pub(crate) bulk: Line,
    /// Headers and small payloads on their way out.
    pub(crate) staging: BytesMut,
    pub(crate) pace: Pace,

    session_events: VecDeque<Event>,
    stream_events: Line,
    pub(crate) stall_check_ms: Option<u64>,
    pub(crate) stats: Stats,
}

/// The ping behind the GoAway of [`Mux::leave`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    None,
    /// It leaves with the next ping.
    Due,
    /// The answer to this value is awaited.
    Sent(u32),
}

/// How far the session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Open,
    /// The peer broke the rules; what remains is to tell it.
    Broken(Violation),
    /// GoAway with a code, or the carrier is lost.
    Over,
}

impl Mux {
    /// A mux at the start of its carrier. Figures out of range are brought into it.
    #[must_use]
    pub fn new(mut config: Config, budget: Arc<Budget>) -> Mux {
        config.streams_max = config.streams_max.clamp(1, 16_384);
        config.window_initial = config.window_initial.clamp(1_024, WIRE_WINDOW_BYTES);
        config.window_max = config.window_max.clamp(config.window_initial, 1 << 30);
        config.send_gate_bytes = config.send_gate_bytes.max(1_024);
        config.frame_bytes_max = config.frame_bytes_max.clamp(1_024, 1 << 20);
        Mux {
            table: Table::new(config.hash_seed),
            account: Account::new(budget),
            pool: Chunks::default(),
            decoder: Decoder::default(),
            pins: Pins::default(),
            seen: SeenIds::default(),
            opens: Bucket::new(config.opens_per_second_max),
            resets_in: Bucket::new(config.resets_per_second_max),
            pings_in: Bucket::new(config.pings_per_second_max),
            pinger: Pinger::default(),
            farewell: Farewell::None,
            next_id: Some(if config.role == Role::Client { 1 } else { 2 }),
            live: 0,
            life: Life::Open,
            leaving: false,
            left: false,
            now_ms: 0,
            go_away_out: None,
            pongs_out: Pongs::default(),
            resets_out: VecDeque::new(),
            notices: Line::default(),
            first: None,
            fresh: Line::default(),
            bulk: Line::default(),
            staging: BytesMut::new(),
            pace: Pace::default(),
            session_events: VecDeque::new(),
            stream_events: Line::default(),
            stall_check_ms: None,
            stats: Stats::default(),
            config,
        }
    }

    // --- session verbs ---

    /// Sends a ping; [`Event::Pong`] brings the answer. One is in flight at a time: a newer one
    /// replaces it. Window tuning sends some of its own.
    pub fn ping(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        if self.life == Life::Open {
            self.pinger.want();
        }
    }

    /// Tells a round trip measured elsewhere (BEAT and ECHO), for window tuning.
    pub fn set_rtt_ms(&mut self, rtt_ms: u64) {
        self.pinger.sample(rtt_ms);
    }

    /// 0: this side opens no streams any more and asks the peer for the same; live ones and those
    /// already on their way go on. Other codes end every stream.
    pub fn go_away(&mut self, code: u32) {
        if self.life != Life::Open {
            return;
        }
        self.leaving = true;
        if code != GO_AWAY_NORMAL {
            self.shut(Life::Over, End::GoAway(code));
        }
        self.go_away_out = Some(code);
    }

    /// [`Mux::go_away`] with 0, and [`Event::Heard`] once nothing of the peer can be on its way
    /// any more that was opened before it knew.
    pub fn leave(&mut self) {
        if self.life == Life::Open {
            self.go_away(GO_AWAY_NORMAL);
            self.farewell = Farewell::Due;
            self.pinger.want();
        }
    }

    /// The carrier is gone: every live stream ends with [`End::CarrierLost`].
    pub fn carrier_lost(&mut self) {
        if self.life == Life::Open {
            self.shut(Life::Over, End::CarrierLost);
        }
        self.go_away_out = None;
    }

    /// The peer did something that ends the session.
    pub(crate) fn break_off(&mut self, violation: Violation) {
        self.shut(Life::Broken(violation), End::GoAway(GO_AWAY_PROTOCOL));
        self.go_away_out = Some(GO_AWAY_PROTOCOL);
    }

    pub(crate) fn peer_went_away(&mut self, code: u32) {
        let repeated = core::mem::replace(&mut self.left, true) && code == GO_AWAY_NORMAL;
        if !repeated {
            self.session_events.push_back(Event::GoAway(code));
        }
        if code != GO_AWAY_NORMAL {
            self.shut(Life::Over, End::GoAway(code));
        }
    }

    fn shut(&mut self, life: Life, end: End) {
        self.life = life;
        self.leaving = true;
        self.pongs_out = Pongs::default();
        self.pinger = Pinger::default();
        self.resets_out.clear();
        self.stall_check_ms = None;
        let ids: Vec<u32> = self.table.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(key) = self.table.key_of(id) {
                self.end_stream(key, end);
            }
        }
        for line in [&mut self.notices, &mut self.fresh, &mut self.bulk] {
            line.clear();
        }
        self.first = None;
    }

    // --- events ---

    /// The next thing the caller should know.
    pub fn next_event(&mut self) -> Option<Event> {
        if let Some(event) = self.session_events.pop_front() {
            return Some(event);
        }
        while let Some(key) = self.stream_events.front() {
            let Some(stream) = self.table.get_mut(key) else {
                self.stream_events.pop();
                continue;
            };
            let id = StreamId(key.id);
            let bit = stream.events & stream.events.wrapping_neg();
            stream.events &= !bit;
            if stream.events == 0 {
                self.stream_events.pop();
            }
            match (bit, stream.end) {
                (told::OPENED, _) => return Some(Event::Opened(id)),
                (told::READABLE, _) => return Some(Event::Readable(id)),
                (told::WRITABLE, _) => return Some(Event::Writable(id)),
                (told::ENDED, Some(end)) => return Some(Event::Ended(id, end)),
                _ => {}
            }
        }
        None
    }

    pub(crate) fn tell(&mut self, key: Key, bits: u8) {
        if let Some(stream) = self.table.get_mut(key).filter(|stream| !stream.released) {
            if stream.events == 0 {
                self.stream_events.push(key);
            }
            stream.events |= bits;
        }
    }

    pub(crate) fn tell_session(&mut self, event: Event) {
        self.session_events.push_back(event);
    }

    // --- streams, inside ---

    /// Puts a stream that has something to send in line.
    pub(crate) fn activate(&mut self, key: Key) {
        let Some(stream) = self.table.get_mut(key) else {
            return;
        };
        if stream.end.is_some() {
            return;
        }
        if !stream.is_sendable() {
            return self.note_stall(key);
        }
        if self.config.first_stream == Some(StreamId(key.id)) {
            self.first = Some(key);
        } else if stream.place == Place::Nowhere {
            stream.place = Place::Fresh;
            stream.deficit = self.config.frame_bytes_max.cast_signed();
            self.fresh.push(key);
        }
    }

    /// Puts a stream that has a flag or credit to tell in line.
    pub(crate) fn notice(&mut self, key: Key) {
        if let Some(stream) = self.table.get_mut(key).filter(|stream| !stream.noticed) {
            stream.noticed = true;
            self.notices.push(key);
        }
    }

    /// Ends a stream otherwise than by FIN. What came whole may still be read.
    pub(crate) fn end_stream(&mut self, key: Key, end: End) {
        let Some(stream) = self.table.get_mut(key).filter(|stream| !stream.is_over()) else {
            return;
        };
        self.live -= 1;
        stream.end = Some(end);
        stream.drop_queued(&mut self.account, &mut self.pool);
        if !stream.received_fin {
            stream.drop_unread(&mut self.account, &mut self.pool);
        }
        stream.close_window(&mut self.account);
        if stream.released || stream.events & told::OPENED != 0 {
            self.remove(key);
        } else {
            self.tell(key, told::ENDED);
        }
    }

    /// RST to the peer, and the stream is forgotten. A stream that the peer has not heard of
    /// vanishes without a word.
    pub(crate) fn abort(&mut self, key: Key) {
        let Some(stream) = self.table.get(key) else {
            return;
        };
        if !stream.is_over() {
            self.live -= 1;
            if stream.flags & crate::frame::SYN == 0 {
                self.resets_out.push_back(key.id);
            }
        }
        self.remove(key);
    }

    /// Takes the stream out of the table and returns what it held.
    pub(crate) fn remove(&mut self, key: Key) {
        let Some(mut stream) = self.table.remove(key) else {
            return;
        };
        stream.drop_unread(&mut self.account, &mut self.pool);
        stream.drop_queued(&mut self.account, &mut self.pool);
        stream.close_window(&mut self.account);
        let lines = [
            &mut self.notices,
            &mut self.fresh,
            &mut self.bulk,
            &mut self.stream_events,
        ];
        for line in lines {
            line.prune(&self.table);
        }
    }

    /// Bookkeeping after FIN went out or came in.
    pub(crate) fn note_finished(&mut self, key: Key) {
        let Some(stream) = self.table.get(key) else {
            return;
        };
        if stream.end.is_none() && stream.is_over() {
            self.live -= 1;
            if stream.released {
                self.remove(key);
            }
        }
    }

    pub(crate) fn resets_max(&self) -> usize {
        self.config.streams_max as usize + RESETS_SPARE_MAX
    }

    /// Places for streams, those included whose handles outlive them.
    pub(crate) fn slots_max(&self) -> usize {
        2 * self.config.streams_max as usize
    }

    // --- observation ---

    /// The stalled stream that holds most memory, for the budget's last rung. O(streams).
    #[must_use]
    pub fn largest_stalled(&self) -> Option<(StreamId, usize)> {
        self.table
            .iter()
            .filter(|(_, stream)| stream.is_stalled() || stream.window.credit == 0)
            .map(|(id, stream)| (StreamId(id), stream.held_bytes()))
            .max_by_key(|(_, bytes)| *bytes)
            .filter(|(_, bytes)| *bytes > 0)
    }

    /// Counts and sizes. O(streams).
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            streams_live: self.live,
            rtt_ms: self.pinger.rtt_ms(),
            ..self.stats
        };
        let mut memory_bytes = size_of::<Mux>() + self.table.memory_bytes();
        memory_bytes += self.pool.memory_bytes() + self.staging.capacity();
        for (_, stream) in self.table.iter() {
            stats.streams_stalled += u32::from(stream.is_stalled());
            stats.unread_bytes += stream.inbox.unread() as u64;
            stats.queued_bytes += stream.outbox.queued() as u64;
            memory_bytes += stream.memory_bytes();
        }
        stats.memory_bytes = memory_bytes as u64;
        stats
    }
}

/// What windows have grown by is returned to the process; the account returns the rest.
impl Drop for Mux {
    fn drop(&mut self) {
        for stream in self.table.iter_mut() {
            stream.window.close(&self.account.budget);
        }
    }
}
