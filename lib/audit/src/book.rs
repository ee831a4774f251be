//! The books of a spool: which segments there are, what is durable in them, what
//! control has, and which events are open.
//!
//! The writer asks [`place`](Book::place) where a group of records goes, writes
//! [`layout`](Book::layout) there, syncs, and says [`commit`](Book::commit) or
//! [`broken`](Book::broken). A file that a write or sync failed on is never written
//! again: what it holds behind its last commit is unknown, and was promised to nobody.

mod recover;

pub use recover::Recovery;

use std::collections::{BTreeMap, VecDeque};

use crate::codec::{CARRIED_BYTES, ENDED_BYTES_MAX};
use crate::event::{Ended, EventId, Outcome, Phase, Record, Verb};
use crate::segment::{FRAME_BYTES, HEADER_BYTES, Header, frame};

/// Events that are open at once.
pub const OPEN_MAX: usize = 16_384;
/// Least size of a spool.
pub const SPOOL_BYTES_MIN: u64 = 8 << 20;
/// Records that lie together are found, and shipped, in pieces of about this size.
pub const MARK_BYTES: u64 = 64 << 10;
const SEGMENT_BYTES_MAX: u64 = 16 << 20;
const SEGMENTS: u64 = 16;
/// Kept free for the records that an open event still needs: result and close.
const RESERVE_BYTES: u64 = 2 * (FRAME_BYTES + ENDED_BYTES_MAX) as u64;
const CARRIED_FRAME_BYTES: u64 = (FRAME_BYTES + CARRIED_BYTES) as u64;

/// What a spool may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments.
    pub segments_max: usize,
    /// Events open at once.
    pub open_max: usize,
}

/// A record on its way into the spool.
#[derive(Clone, Debug)]
pub struct Piece {
    record: Vec<u8>,
    time_unix_ms: u64,
    step: Step,
}

/// What a record does to the set of open events.
#[derive(Clone, Copy, Debug)]
enum Step {
    Opens(EventId, Verb),
    Result(EventId),
    Closes(EventId),
}

/// An event without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    verb: Verb,
    has_result: bool,
}

/// Where a group of records goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into the newest segment.
    Here {
        /// Its number.
        number: u64,
        /// Behind what is durable.
        offset: u64,
    },
    /// Into a new one.
    New {
        /// Its number.
        number: u64,
    },
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Every segment is used.
    #[error("the audit spool holds {0} segments, all that it may; control takes too little")]
    Segments(usize),
    /// Too many audited requests at once.
    #[error("{0} audited requests run, as many as the spool has room to end")]
    Open(usize),
}

/// A stretch of frames that lie one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) sequence: u64,
    pub(crate) next: u64,
    pub(crate) offset: u64,
    pub(crate) end: u64,
    pub(crate) time_unix_ms: u64,
}

#[derive(Clone, Debug)]
struct Segment {
    number: u64,
    header: Header,
    /// Durable.
    bytes: u64,
    runs: Vec<Run>,
}

/// Where records to be shipped lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Of the segment.
    pub number: u64,
    /// Of the segment.
    pub salt: u32,
    /// Its first frame.
    pub offset: u64,
    /// Behind its last one.
    pub end: u64,
    /// Records at its begin that are not wanted.
    pub skip: u64,
}

/// The books.
#[derive(Clone, Debug)]
pub struct Book {
    limits: Limits,
    segments: VecDeque<Segment>,
    /// The newest segment may be written to.
    is_active: bool,
    number: u64,
    next: u64,
    acked: u64,
    open: BTreeMap<EventId, Open>,
}

impl Limits {
    /// Of a spool of so many bytes, at least [`SPOOL_BYTES_MIN`].
    #[must_use]
    pub fn of(bytes: u64) -> Self {
        let bytes = bytes.max(SPOOL_BYTES_MIN);
        let segment_bytes = (bytes / SEGMENTS).min(SEGMENT_BYTES_MAX);
        // Half of a segment: the rest is for the group that opens the last of them.
        let open = segment_bytes / 2 / (RESERVE_BYTES + CARRIED_FRAME_BYTES);
        Self {
            segment_bytes,
            segments_max: usize::try_from(bytes / segment_bytes).unwrap_or(usize::MAX),
            open_max: usize::try_from(open).map_or(OPEN_MAX, |open| open.min(OPEN_MAX)),
        }
    }

    /// Bytes of records that go into one group.
    #[must_use]
    pub fn group_bytes(&self) -> u64 {
        self.segment_bytes / 4
    }
}

impl Piece {
    /// `None` for a record that only a segment's begin holds.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        let (time_unix_ms, step) = match record {
            Record::Attempted(it) => (it.time_unix_ms, Step::Opens(it.id, it.verb)),
            Record::Ended(it) if it.phase() == Phase::Result && it.stays_open => {
                (it.time_unix_ms, Step::Result(it.id))
            }
            Record::Ended(it) => (it.time_unix_ms, Step::Closes(it.id)),
            Record::Carried { .. } => return None,
        };
        Some(Self {
            record: record.encode(),
            time_unix_ms,
            step,
        })
    }

    /// Its bytes in a segment.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.record.len() + FRAME_BYTES) as u64
    }

    /// Whether it opens an event.
    #[must_use]
    pub fn is_attempt(&self) -> bool {
        matches!(self.step, Step::Opens(..))
    }
}

impl Book {
    /// An empty spool.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            segments: VecDeque::new(),
            is_active: false,
            number: 0,
            next: 0,
            acked: 0,
            open: BTreeMap::new(),
        }
    }

    /// Where a group of records goes, at most [`Limits::group_bytes`] of them.
    ///
    /// # Errors
    /// [`Full`]. Records that end an event always have a place.
    pub fn place(&self, pieces: &[Piece]) -> Result<Place, Full> {
        let bytes: u64 = pieces.iter().map(Piece::bytes).sum();
        let attempts = pieces.iter().filter(|piece| piece.is_attempt()).count();
        let open = self.open.len() + attempts;
        if attempts > 0 && open > self.limits.open_max {
            return Err(Full::Open(self.limits.open_max));
        }
        let reserve = match attempts {
            0 => 0,
            _ => open as u64 * RESERVE_BYTES,
        };
        if let Some(newest) = self.segments.back().filter(|_| self.is_active)
            && newest.bytes + bytes + reserve <= self.limits.segment_bytes
        {
            return Ok(Place::Here {
                number: newest.number,
                offset: newest.bytes,
            });
        }
        if attempts > 0 && self.segments.len() >= self.limits.segments_max {
            return Err(Full::Segments(self.segments.len()));
        }
        Ok(Place::New {
            number: self.number + 1,
        })
    }

    /// The bytes to write there; a new segment begins with what is open. `salt` is for a
    /// new segment.
    #[must_use]
    pub fn layout(&self, place: Place, salt: u32, pieces: &[Piece]) -> Vec<u8> {
        let mut out = Vec::new();
        let header = self.header(place, salt);
        if let Place::New { .. } = place {
            out.extend_from_slice(&header.encode());
            for (id, open) in &self.open {
                let carried = Record::Carried {
                    id: *id,
                    verb: open.verb,
                    has_result: open.has_result,
                };
                frame(&mut out, header.salt, &carried.encode());
            }
        }
        for piece in pieces {
            frame(&mut out, header.salt, &piece.record);
        }
        out
    }

    /// What [`layout`](Self::layout) gave for `pieces` is durable there.
    pub fn commit(&mut self, place: Place, salt: u32, pieces: &[Piece]) {
        if let Place::New { number } = place {
            let carried = self.open.len() as u64 * CARRIED_FRAME_BYTES;
            self.segments.push_back(Segment {
                number,
                header: self.header(place, salt),
                bytes: HEADER_BYTES as u64 + carried,
                runs: Vec::new(),
            });
            self.number = number;
            self.is_active = true;
        }
        let Some(segment) = self.segments.back_mut() else {
            return;
        };
        for piece in pieces {
            let end = segment.bytes + piece.bytes();
            segment.took(self.next, end, piece.time_unix_ms);
            self.next += 1;
        }
        for piece in pieces {
            self.step(piece.step);
        }
    }

    /// Writing or syncing failed at `place`: answers the number of a file to delete, if
    /// nothing in it counts.
    pub fn broken(&mut self, place: Place) -> Option<u64> {
        match place {
            Place::New { number } => {
                // A number is used once, whatever is left of the file. The one before is
                // sound: it has room for the ends of what is open.
                self.number = number;
                Some(number)
            }
            Place::Here { .. } => {
                self.is_active = false;
                None
            }
        }
    }

    /// Where the records from `sequence` on lie; a stretch of them, not empty.
    #[must_use]
    pub fn stretch(&self, sequence: u64) -> Option<Stretch> {
        let runs = self.segments.iter().flat_map(|segment| {
            let runs = segment.runs.iter();
            runs.map(move |run| (segment, run))
        });
        let (segment, run) = runs.into_iter().find(|(_, run)| run.next > sequence)?;
        Some(Stretch {
            number: segment.number,
            salt: segment.header.salt,
            offset: run.offset,
            end: run.end,
            skip: sequence.saturating_sub(run.sequence),
        })
    }

    /// Control has everything before `sequence` for good. Answers the numbers of the
    /// segments to delete.
    pub fn ack(&mut self, sequence: u64) -> Vec<u64> {
        self.acked = self.acked.max(sequence.min(self.next));
        let mut done = Vec::new();
        while let Some(oldest) = self.segments.front() {
            let is_written = self.is_active && self.segments.len() == 1;
            let shipped = oldest.runs.iter().all(|run| run.next <= self.acked);
            // The last one also keeps which events are open.
            if is_written || !shipped || (self.segments.len() == 1 && !self.open.is_empty()) {
                break;
            }
            done.push(oldest.number);
            self.segments.pop_front();
        }
        done
    }

    /// All before it is in control's store.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The sequence of the next record.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// What it may hold.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Events that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Bytes of records that control does not have.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting().map(|run| run.end - run.offset).sum()
    }

    /// When the oldest record that control does not have was made, wall clock ms.
    #[must_use]
    pub fn oldest_unix_ms(&self) -> Option<u64> {
        self.waiting().next().map(|run| run.time_unix_ms)
    }

    fn waiting(&self) -> impl Iterator<Item = &Run> {
        let runs = self.segments.iter().flat_map(|segment| &segment.runs);
        runs.filter(|run| run.next > self.acked)
    }

    fn header(&self, place: Place, salt: u32) -> Header {
        match (place, self.segments.back()) {
            (Place::Here { .. }, Some(newest)) => newest.header,
            _ => Header {
                first: self.next,
                salt,
            },
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Opens(id, verb) => {
                let has_result = false;
                self.open.insert(id, Open { verb, has_result });
            }
            Step::Result(id) => {
                if let Some(open) = self.open.get_mut(&id) {
                    open.has_result = true;
                }
            }
            Step::Closes(id) => drop(self.open.remove(&id)),
        }
    }
}

impl Segment {
    /// A record lies at its end, up to `end`.
    fn took(&mut self, sequence: u64, end: u64, time_unix_ms: u64) {
        let last = self.runs.last_mut().filter(|run| {
            let is_small = run.end - run.offset < MARK_BYTES;
            is_small && run.end == self.bytes && run.next == sequence
        });
        match last {
            Some(run) => (run.end, run.next) = (end, sequence + 1),
            None => self.runs.push(Run {
                sequence,
                next: sequence + 1,
                offset: self.bytes,
                end,
                time_unix_ms,
            }),
        }
        self.bytes = end;
    }
}

impl Open {
    /// The record that ends it when nobody knows how it ended.
    fn unknown_end(self, id: EventId, now_ms: u64) -> Ended {
        let verb = match self.has_result {
            true => Verb::ExecClose,
            false => self.verb,
        };
        Ended {
            id,
            time_unix_ms: now_ms,
            verb,
            outcome: Outcome::Failure,
            status: 0,
            reason: culvert_proto::close::CloseReason::UnknownEnd
                .as_str()
                .into(),
            to_service: 0,
            to_client: 0,
            duration_ms: 0,
            stays_open: false,
        }
    }
}
