//! The programs of the eBPF observer: they measure the sockets that the data plane tags, and
//! change nothing.
//!
//! Every program returns "go on". The kernel's verifier proves that each ends and touches only
//! its own memory; without CAP_PERFMON it also refuses what could be guessed at speculatively,
//! so arrays are flat, keys are computed, and fields are read one by one.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "lock add"))]
#![deny(unsafe_code)]

#[cfg(target_arch = "bpf")]
mod memory;
#[cfg(target_arch = "bpf")]
mod needs;
#[cfg(target_arch = "bpf")]
mod parse;

#[cfg(all(target_arch = "bpf", not(feature = "testprogs")))]
mod observer;
#[cfg(all(target_arch = "bpf", feature = "testprogs"))]
mod testprogs;

/// The host has nothing to run here.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
