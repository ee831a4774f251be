//! The recent residence of one direction of one pair: 16 lanes of 16 bits in four words.
//! Lane 0 holds samples up to 4.1 us, each further lane twice that, the last one the rest.

use crate::bucket::floor_log2;

/// Words of a direction.
pub const WORDS: u32 = 4;
/// Lanes of a direction.
pub const LANES: u32 = 16;

const PER_WORD: u32 = 4;
const BITS: u32 = 16;
const FULL: u64 = 0xffff;
const FIRST_SHIFT: u32 = 12;
const NS_PER_US: u64 = 1_000;

/// The lane of a duration.
#[inline(always)]
#[must_use]
pub const fn of_ns(ns: u64) -> u32 {
    if ns <= 1 << FIRST_SHIFT {
        return 0;
    }
    // No loop: the verifier would walk it.
    let lane = 1 + floor_log2((ns - 1) >> FIRST_SHIFT);
    if lane < LANES { lane } else { LANES - 1 }
}

/// The word that holds a lane.
#[inline(always)]
#[must_use]
pub const fn word_of(lane: u32) -> u32 {
    lane / PER_WORD
}

/// Whether a lane of this word is full: all four words have to be halved first.
#[inline(always)]
#[must_use]
pub const fn is_full(word: u64, lane: u32) -> bool {
    (word >> shift(lane)) & FULL == FULL
}

/// One more in a lane that is not full.
#[inline(always)]
#[must_use]
pub const fn plus_one(word: u64, lane: u32) -> u64 {
    word + (1 << shift(lane))
}

/// Every lane of a word halved.
#[inline(always)]
#[must_use]
pub const fn halved(word: u64) -> u64 {
    (word >> 1) & 0x7fff_7fff_7fff_7fff
}

#[inline(always)]
const fn shift(lane: u32) -> u32 {
    (lane % PER_WORD) * BITS
}

/// Counts one sample.
pub fn add(words: &mut [u64; WORDS as usize], lane: u32) {
    let lane = lane.min(LANES - 1);
    let at = word_of(lane) as usize;
    if is_full(words[at], lane) {
        for word in words.iter_mut() {
            *word = halved(*word);
        }
    }
    words[at] = plus_one(words[at], lane);
}

/// Count of a lane.
#[must_use]
pub fn count(words: &[u64; WORDS as usize], lane: u32) -> u64 {
    let lane = lane.min(LANES - 1);
    (words[word_of(lane) as usize] >> shift(lane)) & FULL
}

/// Samples in all lanes.
#[must_use]
pub fn samples(words: &[u64; WORDS as usize]) -> u64 {
    (0..LANES).map(|lane| count(words, lane)).sum()
}

/// Upper bound of the lane in which the quantile `per_mille` / 1000 lies, in microseconds;
/// the last lane has none and gives its lower bound doubled. Nothing without samples.
#[must_use]
pub fn quantile_us(words: &[u64; WORDS as usize], per_mille: u64) -> Option<u64> {
    let samples = samples(words);
    let rank = (samples * per_mille.min(1_000)).div_ceil(1_000).max(1);
    let mut seen = 0;
    for lane in 0..LANES {
        seen += count(words, lane);
        if samples > 0 && seen >= rank {
            return Some((1_u64 << (FIRST_SHIFT + lane)).div_ceil(NS_PER_US));
        }
    }
    None
}
