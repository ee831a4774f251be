//! Histogram buckets: quarter octaves from 2^-20 s to 2^6 s, upper bounds inclusive.

/// Cells of a row in `HIST`.
pub const ROW: u32 = 128;
/// Buckets of a row, the last one for everything above 64 s.
pub const BUCKETS: usize = 106;
/// Cell of a row that holds the sum of the samples, in nanoseconds.
pub const SUM: u32 = 106;
/// Octaves that [`fold_octaves`] yields, the last one for everything above 64 s.
pub const OCTAVES: usize = 28;

/// A second has 2^30 units; this over 2^20 is units per nanosecond, 8.3e-8 too large.
const SCALE: u64 = 1_125_900;
const NS_MAX: u64 = 1 << 43;
/// log2 of bucket 0's upper bound in units.
const FIRST: u32 = 10;

/// The bucket of a duration. Exact but for 0.006 quarter octaves around a bound.
#[inline(always)]
#[must_use]
pub const fn of_ns(ns: u64) -> u32 {
    let ns = if ns > NS_MAX { NS_MAX } else { ns };
    let units = (ns * SCALE) >> 20;
    if units <= 1 << FIRST {
        return 0;
    }
    let below = units - 1;
    let octave = floor_log2(below);
    if octave >= FIRST + 26 {
        return BUCKETS as u32 - 1;
    }
    // 17 bits of mantissa against 2^16 * 2^(1/4), 2^(2/4), 2^(3/4).
    let mantissa = (below << (63 - octave)) >> 47;
    let quarter =
        (mantissa >= 77_936) as u32 + (mantissa >= 92_682) as u32 + (mantissa >= 110_218) as u32;
    1 + (octave - FIRST) * 4 + quarter
}

/// 0 for 0. A compare chain: the kernel's instruction set counts no zeros.
#[inline(always)]
pub(crate) const fn floor_log2(value: u64) -> u32 {
    let mut rest = value;
    let mut log = 0;
    if rest >= 1 << 32 {
        rest >>= 32;
        log += 32;
    }
    if rest >= 1 << 16 {
        rest >>= 16;
        log += 16;
    }
    if rest >= 1 << 8 {
        rest >>= 8;
        log += 8;
    }
    if rest >= 1 << 4 {
        rest >>= 4;
        log += 4;
    }
    if rest >= 1 << 2 {
        rest >>= 2;
        log += 2;
    }
    if rest >= 1 << 1 {
        log += 1;
    }
    log
}

/// Upper bound of a bucket, in seconds, as Prometheus' native schema 2 has it.
#[must_use]
pub fn upper_s(bucket: usize) -> f64 {
    /// 2^0, 2^(1/4), 2^(2/4), 2^(3/4).
    const QUARTERS: [f64; 4] = [
        1.0,
        1.189_207_115_002_721,
        core::f64::consts::SQRT_2,
        1.681_792_830_507_429,
    ];
    if bucket + 1 >= BUCKETS {
        return f64::INFINITY;
    }
    QUARTERS[bucket % 4] * power_of_two(bucket / 4)
}

/// Upper bound of an octave, in seconds: 2^-20 to 2^6, then infinity.
#[must_use]
pub fn octave_upper_s(octave: usize) -> f64 {
    if octave + 1 >= OCTAVES {
        return f64::INFINITY;
    }
    power_of_two(octave)
}

/// 2^(exponent - 20), exactly.
fn power_of_two(exponent: usize) -> f64 {
    let whole = 1_u64 << exponent.min(63);
    #[expect(clippy::cast_precision_loss, reason = "a power of two is exact")]
    let whole = whole as f64;
    whole / f64::from(1_u32 << 20)
}

/// Counts of the octaves of a row, not cumulative. Cells beyond the buckets are ignored.
#[must_use]
pub fn fold_octaves(row: &[u64]) -> [u64; OCTAVES] {
    let mut octaves = [0; OCTAVES];
    for (bucket, count) in row.iter().take(BUCKETS).enumerate() {
        octaves[bucket.div_ceil(4)] += count;
    }
    octaves
}
