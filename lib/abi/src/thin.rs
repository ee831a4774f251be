//! Which of many like things are looked at, so that the kernel's time is spent on few of them. The
//! first samples of a connection all are, so that a short one is known as well as ever.

/// Samples that are all taken.
pub const WHOLE: u32 = 256;
/// Bytes of a direction after which not all are taken any more: of a direction that is alone,
/// samples are not counted where they begin.
pub const WHOLE_BYTES: u64 = 4 << 20;
/// One in so many is taken after them: a power of two.
pub const ONE_IN: u32 = 4;
/// Packets of at least so much payload are bulk, of which there are many and each is like the next.
pub const BULK_BYTES: u32 = 16 << 10;
/// One in so many of these is taken: a power of two.
pub const ONE_IN_BULK: u32 = 16;
/// One in so many acknowledgements without payload is looked at: a power of two.
pub const ONE_IN_ACKS: u32 = 4;

/// Whether the `nth` sample is taken, from 0.
#[inline(always)]
#[must_use]
pub const fn takes(nth: u32) -> bool {
    nth < WHOLE || nth & (ONE_IN - 1) == 0
}

/// Whether a packet of `payload` bytes that begins at stream offset `at` is sampled, after
/// `samples` of them. Chosen by its place, which costs no clock.
#[inline(always)]
#[must_use]
pub const fn takes_at(samples: u32, at: u64, payload: u32) -> bool {
    let one_in = if payload < BULK_BYTES {
        ONE_IN
    } else {
        ONE_IN_BULK
    };
    (samples < WHOLE && at < WHOLE_BYTES) || mixed(at as u32) & (one_in - 1) == 0
}

/// Whether an acknowledgement without payload is looked at: what it would tell, the next packet
/// out or the end of the connection tells too.
#[inline(always)]
#[must_use]
pub const fn takes_ack(acknowledged: u32) -> bool {
    mixed(acknowledged) & (ONE_IN_ACKS - 1) == 0
}

/// Low bits that depend on all lower ones, also of numbers that are multiples of a power of two
/// (multiplicative hashing: Knuth, The Art of Computer Programming 3, 6.4).
const fn mixed(number: u32) -> u32 {
    number.wrapping_mul(0x9E37_79B1) >> 28
}
