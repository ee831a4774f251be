//! The kernel's monotonic clock.
#![expect(unsafe_code, reason = "a helper call")]

use aya_ebpf::helpers::bpf_ktime_get_ns;

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}
