//! The engine between real sockets, on each backend that the kernel allows.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test that cannot go on panics, patterns of test bytes wrap, measurements are printed"
)]

mod denied;
mod ends;
mod hop;
mod integrity;
mod poor;
mod rig;
