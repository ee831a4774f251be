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
mod pair_boot;
mod pair_relay;
mod process;
mod relay;
mod request;
mod rotate;
mod session;
mod support;
mod upgrade;
