//! Benchmarks of the hot paths beside their rivals.
