//! The outstanding residence sample of a direction in one word, so that writing it needs
//! neither an order nor a compare-and-swap: bit 63 behind, 62..28 tick, 27..0 offset out.

use crate::ticks;

/// No sample is outstanding.
pub const FREE: u64 = 0;

const OFFSET_BITS: u32 = 28;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;

/// An arm word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Armed {
    /// Earlier bytes were still inside.
    pub behind: bool,
    /// When the byte came in.
    pub tick: u64,
    /// Its offset on the way out, modulo 2^28.
    pub offset: u32,
}

/// The word of a byte that came at `tick` and leaves at payload offset `offset`. Never [`FREE`]
/// but for offset 0 in the one tick of 2^35 that is 0, when the sample is lost.
#[inline(always)]
#[must_use]
pub const fn pack(behind: u64, tick: u64, offset: u64) -> u64 {
    (behind & 1) << 63 | tick << OFFSET_BITS & !(1 << 63) | offset & OFFSET_MASK
}

/// The parts of a word.
#[must_use]
pub const fn unpack(word: u64) -> Armed {
    Armed {
        behind: word >> 63 == 1,
        tick: tick(word),
        offset: (word & OFFSET_MASK) as u32,
    }
}

/// 1 when earlier bytes were still inside.
#[inline(always)]
#[must_use]
pub const fn behind(word: u64) -> u32 {
    (word >> 63) as u32
}

/// When the byte came in.
#[inline(always)]
#[must_use]
pub const fn tick(word: u64) -> u64 {
    (word >> OFFSET_BITS) & ((1 << ticks::BITS) - 1)
}

/// Whether a direction that has sent up to `tx_end` has sent the byte: it lies less than 2^27
/// behind. A word that is passed by more than that reads as not passed; the sweep frees it.
#[inline(always)]
#[must_use]
pub const fn passed(word: u64, tx_end: u64) -> bool {
    ((tx_end as u32).wrapping_sub(word as u32) << (32 - OFFSET_BITS)) as i32 > 0
}
