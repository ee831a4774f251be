//! The agent's library against real services and a real hub side, over loopback.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends at what it did not expect"
)]

mod allow;
mod channel;
mod config;
mod drain;
mod flow;
mod forward;
mod hub;
mod pair;
mod process;
mod request;
mod rotate;
mod session;
mod support;
mod upgrade;
