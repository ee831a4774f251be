//! The observer with the real kernel. Whoever starts it gives its capabilities up, so each start
//! runs in a process of its own, on its only thread.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on panics, what was measured is printed"
)]

mod costs;
mod degrade;
mod lives;
mod load;
mod matrix;
mod relay;
mod rig;
mod slots;
mod told;
