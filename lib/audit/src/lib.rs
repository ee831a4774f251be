//! Audit of requests: which are audited, what is recorded of them, and how a
//! record is kept until the store has it.
//!
//! A request that is audited leaves a durable `attempted` record before it is
//! forwarded, and another one when it ended. Both travel to control in order and
//! may be sent again: the store knows them by their event. Pure: files, time and
//! randomness are the caller's.
#![forbid(unsafe_code)]

mod book;
mod classify;
mod codec;
mod event;
mod segment;
mod window;

pub use book::{
    Book, Full, Limits, MARK_BYTES, OPEN_MAX, Piece, Place, Recovery, SPOOL_BYTES_MIN, Stretch,
};
pub use classify::{Action, BULK_BYTES, classify, verb};
pub use codec::{DecodeError, RECORD_BYTES_MAX, TextMax};
pub use event::{
    Actor, Attempted, Ended, EventId, GROUPS_MAX, Outcome, Phase, Record, Resource, Verb,
};
pub use segment::{
    Damaged, FRAME_BYTES, HEADER_BYTES, Header, NoSegment, Scanned, Seen, frame, payloads, scan,
};
pub use window::{BadAck, IN_FLIGHT_MAX, Window};
