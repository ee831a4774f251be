//! Benchmarks of the hot paths beside their rivals.
//!
//! * `cargo bench -p culvert-benches --bench mux`: frames and the sans-io mux in memory.
//! * `cargo bench -p culvert-benches --bench rivals`: CPU time and memory beside the `yamux`
//!   crate, interleaved in one run; prints ratios.
#![forbid(unsafe_code)]
