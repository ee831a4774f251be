//! Writes to maps. Every field by itself and volatile, as reads are.
#![expect(unsafe_code, reason = "pointers that the verifier follows")]

use core::intrinsics::{AtomicOrdering, atomic_xadd};

/// Writes a field behind a pointer.
macro_rules! write {
    ($pointer:expr, $field:ident, $value:expr) => {{
        let (pointer, value) = ($pointer, $value);
        // SAFETY: a program in which this pointer may be invalid is not loaded.
        #[expect(unsafe_code, reason = "the verifier follows the pointer")]
        unsafe {
            core::ptr::write_volatile(core::ptr::addr_of_mut!((*pointer).$field), value)
        }
    }};
}

/// Adds to a field that other CPUs add to.
macro_rules! add {
    ($pointer:expr, $field:ident, $value:expr) => {{
        let (pointer, value) = ($pointer, $value);
        // SAFETY: a program in which this pointer may be invalid is not loaded.
        #[expect(unsafe_code, reason = "the verifier follows the pointer")]
        let cell = unsafe { core::ptr::addr_of_mut!((*pointer).$field) };
        $crate::observer::cells::add_to(cell, value)
    }};
}

pub(crate) use {add, write};

/// `lock add`. The old value is not taken: kernels before 5.12 cannot give it.
#[inline(always)]
pub fn add_to(cell: *mut u64, value: u64) {
    // SAFETY: an aligned cell of a map; the verifier follows the pointer.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(cell, value);
    }
}

/// A whole cell.
#[inline(always)]
pub fn load(cell: *mut u64) -> u64 {
    // SAFETY: an aligned cell of a map; the verifier follows the pointer.
    unsafe { core::ptr::read_volatile(cell) }
}

/// A whole cell.
#[inline(always)]
pub fn store(cell: *mut u64, value: u64) {
    // SAFETY: an aligned cell of a map; the verifier follows the pointer.
    unsafe { core::ptr::write_volatile(cell, value) }
}
