//! Buffers of a thread: borrowed for a read, kept only while bytes wait for room.

use std::cell::RefCell;

/// Bytes of one buffer; 16 KiB cost a fifth more beside TLS.
pub const BUFFER_BYTES: usize = 64 << 10;
/// Buffers a thread keeps for the next read.
pub const BUFFERS_KEPT_MAX: usize = 8;

thread_local! {
    static KEPT: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer with any content.
pub(crate) fn take() -> Box<[u8]> {
    let kept = KEPT.with_borrow_mut(Vec::pop);
    kept.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
}

/// Gives it back to whatever thread this is.
pub(crate) fn give_back(buffer: Box<[u8]>) {
    KEPT.with_borrow_mut(|kept| {
        if kept.len() < BUFFERS_KEPT_MAX {
            kept.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_no_more_than_its_share() {
        let all: Vec<_> = (0..=BUFFERS_KEPT_MAX).map(|_| take()).collect();
        all.into_iter().for_each(give_back);
        assert_eq!(KEPT.with_borrow(Vec::len), BUFFERS_KEPT_MAX);
        assert_eq!(take().len(), BUFFER_BYTES);
    }
}
