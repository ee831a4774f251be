//! The real relay on loopback, with real sides, real TLS and what no side should send.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on panics; patterns of test bytes wrap"
)]

mod drain;
mod hostile;
mod limits;
mod pairs;
mod program;
mod rig;
mod vanished;
