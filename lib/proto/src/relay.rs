//! What a relay decides (P15): whom it lets in, who waits, who is joined to whom.
//!
//! [`Sources`] bounds how often one source may come, [`Waiting`] holds who is here
//! and says who meets, [`Patience`] when a waiter hears a word. All are bounded and know neither clock nor socket.

mod patience;
mod sources;
mod waiting;

pub use patience::Patience;
pub use sources::{SOURCES_MAX, SOURCES_WIDE_MAX, Source, Sources, Verdict};
pub use waiting::{Entered, Full, Limits, Matched, Place, WaiterId, Waiting};

/// Connections of one source in a minute.
pub const CONNECTIONS_PER_MINUTE_DEFAULT: u32 = 100;
/// Pairs at once.
pub const PAIRS_DEFAULT: u32 = 1_000;
/// Sides that wait, in all.
pub const WAITERS_DEFAULT: u32 = 4_096;
/// Sides that wait, of one source.
pub const SOURCE_WAITERS_DEFAULT: u32 = 32;
/// Each of the four may be set to a tenth of its default and to ten times it.
pub const BOUND_FACTOR: u32 = 10;
