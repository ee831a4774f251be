//! Every structure on the wire: golden bytes, round trips, any split, any garbage.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod channel;
mod control;
mod golden;
mod hello;
mod join;
mod open;
mod pair;
mod state;
