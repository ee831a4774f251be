//! Reads of kernel memory. Every field by itself and volatile: a merged, widened or moved read of
//! a context is refused.

/// Reads a field behind a pointer.
macro_rules! read {
    ($pointer:expr, $($field:tt)+) => {{
        let pointer = $pointer;
        // SAFETY: a program in which this pointer may be invalid is not loaded.
        #[expect(unsafe_code, reason = "the verifier follows the pointer")]
        unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*pointer).$($field)+)) }
    }};
}

pub(crate) use read;
