//! Since when payload waits to be read, in one word: time in the upper bits, and in the lower
//! three which trace it is waiting for. What a trace left behind when it ended is none of the
//! next one's.

/// Traces that are told apart.
pub const MARKS: u32 = 7;

/// The word of payload that came at `tick` ([`crate::ticks`]) while trace `mark` ran: 512 ns are
/// told apart, and after four and a half minutes it begins anew. Never 0, but for mark 0.
#[inline(always)]
#[must_use]
pub const fn pack(mark: u32, tick: u64) -> u32 {
    tick as u32 & !MARKS | mark & MARKS
}

/// The trace of a word; 0 = nothing waits.
#[inline(always)]
#[must_use]
pub const fn mark(word: u32) -> u32 {
    word & MARKS
}

/// Ticks from the word's time until `tick`.
#[inline(always)]
#[must_use]
pub const fn ticks(word: u32, tick: u64) -> u32 {
    (tick as u32 & !MARKS).wrapping_sub(word & !MARKS)
}
