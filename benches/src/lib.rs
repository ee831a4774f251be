//! Benchmarks of the hot paths beside their rivals.
//!
//! * `cargo bench -p culvert-benches --bench mux`: frames and the sans-io mux in memory.
//! * `cargo xtask instructions`: instructions of the engine's and the mux's steps, counted by
//!   valgrind in the dev profile (`opt-level` 1, as all tests), against `instructions.txt`. CI
//!   fails when a count rises by more than 2 %; the file is changed in the commit that says why.
//! * `cargo bench -p culvert-benches --bench rivals`: CPU time and memory beside the `yamux`
//!   crate, interleaved in one run; prints ratios.
#![forbid(unsafe_code)]
