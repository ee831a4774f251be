//! Which samples of a busy connection are taken. The first ones all are, so that a short
//! connection is known as well as ever; after them the kernel's time goes to one in four.

/// Samples that are all taken.
pub const WHOLE: u32 = 256;
/// One in so many is taken after them: a power of two.
pub const ONE_IN: u32 = 4;

/// Whether the `nth` sample is taken, from 0.
#[inline(always)]
#[must_use]
pub const fn takes(nth: u32) -> bool {
    nth < WHOLE || nth & (ONE_IN - 1) == 0
}

/// The same of a place where samples are not counted one by one: `samples` so far, and by the
/// lowest bits of a time in ticks, which no traffic keeps step with.
#[inline(always)]
#[must_use]
pub const fn takes_at(samples: u32, tick: u64) -> bool {
    samples < WHOLE || tick & (ONE_IN as u64 - 1) == 0
}
