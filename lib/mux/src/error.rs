//! What the mux tells its caller: events, results and the ways things end.

use bytes::Bytes;
use thiserror::Error;

/// A stream of one session. Ids are never reused within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

impl core::fmt::Display for StreamId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}

/// Something the caller should look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The peer opened this stream. It holds a place until [`Mux::release`](crate::Mux::release).
    Opened(StreamId),
    /// Follows a read that was pending: bytes or the end are there.
    Readable(StreamId),
    /// Follows a write that was blocked: at least half of the send gate is free.
    Writable(StreamId),
    /// The stream ended otherwise than by FIN.
    Ended(StreamId, End),
    /// The peer sent GoAway. 0: draining, live streams go on; other codes: all of them ended.
    GoAway(u32),
    /// After [`Mux::leave`](crate::Mux::leave): the peer knows. Every stream that it opened before
    /// was told or waits in the queue of events.
    Heard,
    /// The answer to a ping of ours.
    Pong {
        /// From the moment the ping left [`Mux::transmit`](crate::Mux::transmit), milliseconds.
        rtt_ms: u64,
    },
}

/// How a stream ended, if it was not by FIN. Only FIN reads as [`Read::Eof`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The peer reset it, or it stalled beyond the limit.
    Reset,
    /// The session was ended with this GoAway code, by either side.
    GoAway(u32),
    /// The carrier was lost without a word.
    CarrierLost,
}

/// Result of [`Mux::read`](crate::Mux::read).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// At least one byte. The credit is returned to the peer.
    Data(Bytes),
    /// Nothing yet; an [`Event::Readable`] or [`Event::Ended`] will follow.
    Pending,
    /// The peer finished, and every byte it sent has been read.
    Eof,
}

/// Result of [`Mux::write`](crate::Mux::write).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// All of it is queued.
    Accepted,
    /// The send gate is full: this rest was not queued. [`Event::Writable`] will follow.
    Blocked(Bytes),
}

/// Why a stream cannot be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StreamError {
    /// Ended by RST.
    #[error("stream was reset by the peer")]
    Reset,
    /// Ended by a GoAway with a code other than 0.
    #[error("session was ended with GoAway code {0}")]
    GoneAway(u32),
    /// Ended with the carrier.
    #[error("carrier was lost")]
    CarrierLost,
    /// Written after `finish`.
    #[error("stream was already finished by this side")]
    Finished,
    /// Never opened, reset by this side, or released.
    #[error("no stream {0} in this session")]
    Unknown(u32),
}

/// Why no stream was opened. The session lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OpenError {
    /// `streams_max` live streams.
    #[error("session has {0} live streams, the limit")]
    TooMany(u32),
    /// GoAway was sent or received, or the carrier is lost.
    #[error("session takes no new streams")]
    GoneAway,
    /// This session has opened all its ids: dial a new carrier.
    #[error("session has used all its stream ids")]
    IdsExhausted,
    /// The process budget is above 80 %.
    #[error("memory budget: {used} of {limit} bytes in use")]
    Budget {
        /// Bytes charged.
        used: u64,
        /// Bytes allowed.
        limit: u64,
    },
}

/// What the peer did against the protocol or its limits. The caller transmits what is queued
/// (a GoAway 1), waits at most a second, and closes the carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// Version byte other than 0.
    #[error("peer sent frame version {0}, expected 0")]
    Version(u8),
    /// Type byte above 3.
    #[error("peer sent frame type {0}, expected 0 to 3")]
    FrameType(u8),
    /// Stream frame on id 0, or session frame on another.
    #[error("peer sent frame type {kind} on stream id {id}")]
    FrameId {
        /// Type byte.
        kind: u8,
        /// Stream id.
        id: u32,
    },
    /// SYN on an id that is ours to open.
    #[error("peer opened stream {0}, whose parity belongs to this side")]
    Parity(u32),
    /// SYN on an id that is or was in use.
    #[error("peer opened stream {0} again")]
    IdReuse(u32),
    /// A frame for an id of ours that we have not opened yet.
    #[error("peer wrote to stream {0}, which was never opened")]
    Unopened(u32),
    /// More payload than the credit held.
    #[error("peer sent {length} bytes on stream {id} holding credit for {credit}")]
    CreditOverrun {
        /// Stream id.
        id: u32,
        /// Declared payload.
        length: u32,
        /// Credit held by the peer.
        credit: u32,
    },
    /// Credit beyond 2^32 - 1.
    #[error("peer granted {delta} on top of {credit} bytes of credit on stream {id}")]
    CreditOverflow {
        /// Stream id.
        id: u32,
        /// Credit we held.
        credit: u32,
        /// Credit added.
        delta: u32,
    },
    /// Too many SYN in a second.
    #[error("peer opened more than {0} streams in a second")]
    OpenRate(u32),
    /// Too many RST in a second.
    #[error("peer reset more than {0} streams in a second")]
    ResetRate(u32),
    /// Too many pings in a second.
    #[error("peer sent more than {0} pings in a second")]
    PingRate(u32),
    /// The peer provokes resets and does not read them.
    #[error("{0} resets wait for a peer that does not read them")]
    ResetBacklog(usize),
}

/// A look at one mux.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Streams that have not ended in both directions.
    pub streams_live: u32,
    /// Streams with queued bytes and no credit from the peer.
    pub streams_stalled: u32,
    /// Streams opened by us since the start.
    pub opened_local: u64,
    /// Streams opened by the peer and accepted since the start.
    pub opened_remote: u64,
    /// Streams of the peer that were refused since the start.
    pub refused: u64,
    /// Carrier bytes received, headers included.
    pub bytes_received: u64,
    /// Carrier bytes transmitted, headers included.
    pub bytes_transmitted: u64,
    /// Received payload that the caller has not read.
    pub unread_bytes: u64,
    /// Written payload that has not been transmitted.
    pub queued_bytes: u64,
    /// Heap held by this mux, estimated from above.
    pub memory_bytes: u64,
    /// Smallest recent round trip, milliseconds.
    pub rtt_ms: Option<u64>,
    /// `now_ms` of the last [`Mux::receive`](crate::Mux::receive) with at least one byte.
    pub last_received_ms: Option<u64>,
}
