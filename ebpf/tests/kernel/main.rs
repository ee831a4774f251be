//! The programs in a real kernel, with the two capabilities that production has and no more.
//!
//! Each test has a cgroup and a network of its own and takes both away again. They want root;
//! without it they say SKIP, and where `CULVERT_REQUIRE=all` they fail.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on panics, and measurements are printed"
)]

mod bytes;
mod cost;
mod life;
mod loads;
mod packets;
mod residence;
mod rig;
