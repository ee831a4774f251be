//! Payload offsets of 64 bits from sequence numbers of 32. SYN and FIN are not payload.

/// End of a segment as a payload offset, modulo 2^32.
#[inline(always)]
#[must_use]
pub const fn end(sequence: u32, payload: u32, base: u32) -> u32 {
    sequence.wrapping_add(payload).wrapping_sub(base)
}

/// How far a segment that ends at `end` carries a stream beyond `position`; 0 when it is sent
/// again.
#[inline(always)]
#[must_use]
pub const fn advance(position: u64, end: u32) -> u32 {
    let ahead = end.wrapping_sub(position as u32);
    if ahead as i32 <= 0 { 0 } else { ahead }
}

/// Whether payload before `start` is missing.
#[inline(always)]
#[must_use]
pub const fn leaves_hole(position: u64, start: u32) -> bool {
    (start.wrapping_sub(position as u32) as i32) > 0
}

/// Whether everything before `hole_end` has come; `next` is the next offset that the socket
/// wants.
#[inline(always)]
#[must_use]
pub const fn is_filled(next: u32, hole_end: u32) -> bool {
    (next.wrapping_sub(hole_end) as i32) >= 0
}

/// Payload that came in order: `counted` is the kernel's `bytes_received`, which counts a FIN
/// (`fin`: one may have come), `rx_end` the highest payload offset seen.
#[inline(always)]
#[must_use]
pub const fn received(counted: u64, rx_end: u64, fin: bool) -> u64 {
    if counted <= rx_end || !fin {
        return counted;
    }
    counted - 1
}
