//! Tests that move gigabytes or open thousands of connections: one at a time.

mod crowd;
mod harness;
mod nginx;
mod pair;
pub mod routed;
mod stalled;
