//! Wire formats and decisions of Culvert, without I/O.
//!
//! Nothing here reads a clock, draws a random number or touches a socket: time and randomness are
//! arguments. Section numbers such as "P5" point into `docs/protocol.md`.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod answer;
pub mod channel;
pub mod close;
pub mod control;
pub mod head;
pub mod hello;
pub mod id;
pub mod join;
pub mod limits;
pub mod open;
pub mod pair;
pub mod registry;
pub mod relay;
pub mod route;
pub mod session;
pub mod token;
pub mod update;

mod text;
mod wire;
