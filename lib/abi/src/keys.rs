//! Keys of the flat arrays: one element for each key, because the verifier refuses a variable
//! offset inside an element.

/// Rows of a cluster in `HIST`.
pub const KINDS: u32 = 8;
/// Rows of a cluster in `CNT`; leg 0 is nobody's.
pub const LEGS: u32 = 8;
/// Cells of a row in `CNT`, so that CPUs do not share a cache line.
pub const SHARDS: u32 = 4;

/// First cell of a histogram row; add the bucket.
#[inline(always)]
#[must_use]
pub const fn hist_row(cluster: u16, kind: u32) -> u32 {
    (cluster as u32 * KINDS + (kind & (KINDS - 1))) * crate::bucket::ROW
}

/// Counters of a cluster and leg; `shard` is a CPU number.
#[inline(always)]
#[must_use]
pub const fn cnt_cell(cluster: u16, leg: u8, shard: u32) -> u32 {
    (cluster as u32 * LEGS + (leg as u32 & (LEGS - 1))) * SHARDS + (shard & (SHARDS - 1))
}

/// A direction of a slot.
#[inline(always)]
#[must_use]
pub const fn pair_key(slot: u32, direction: u32) -> u32 {
    slot * 2 + (direction & 1)
}

/// A word of the lanes of a direction of a slot.
#[inline(always)]
#[must_use]
pub const fn pres_key(slot: u32, direction: u32, word: u32) -> u32 {
    pair_key(slot, direction) * crate::lane::WORDS + (word & (crate::lane::WORDS - 1))
}

/// First cell of `SELF` that counts resets.
pub const RESETS: u32 = 256;
/// Reasons of a leg in `SELF`.
pub const RESET_REASONS: u32 = 32;
/// Reason of a reset where the kernel tells none.
pub const RESET_UNKNOWN: u32 = RESET_REASONS - 1;

/// Resets sent on a leg; `reason` as the running kernel numbers them (`enum sk_rst_reason`).
#[inline(always)]
#[must_use]
pub const fn reset_cell(leg: u8, reason: u32) -> u32 {
    let reason = if reason < RESET_REASONS {
        reason
    } else {
        RESET_UNKNOWN
    };
    RESETS + (leg as u32 & (LEGS - 1)) * RESET_REASONS + reason
}
