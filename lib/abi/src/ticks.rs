//! Short times: ticks of 64 ns.

/// Nanoseconds of a tick.
pub const TICK_NS: u64 = 64;
/// Bits of a tick count in an arm word: 36 minutes.
pub const BITS: u32 = 35;
const MASK: u64 = (1 << BITS) - 1;

/// The tick of a time.
#[inline(always)]
#[must_use]
pub const fn of_ns(ns: u64) -> u64 {
    (ns / TICK_NS) & MASK
}

/// Ticks from `earlier` to `now`, across one wrap.
#[inline(always)]
#[must_use]
pub const fn since(now: u64, earlier: u64) -> u64 {
    now.wrapping_sub(earlier) & MASK
}

/// Ticks as a counter of 32 bits, which stays at its end.
#[inline(always)]
#[must_use]
pub const fn saturated(ticks: u64) -> u32 {
    if ticks > u32::MAX as u64 {
        return u32::MAX;
    }
    ticks as u32
}

/// Mean with weight 1/8 for the new value; the first value is the mean.
#[inline(always)]
#[must_use]
pub const fn mean(old: u32, samples: u16, new: u32) -> u32 {
    if samples == 0 {
        return new;
    }
    ((old as u64 * 7 + new as u64) >> 3) as u32
}
