//! Sans-io stream multiplexer on the yamux wire.
//!
//! [`Mux`] is a pure state machine: bytes from the carrier go into [`Mux::receive`], bytes for it
//! come out of [`Mux::transmit`], time is an argument (`now_ms`, milliseconds of one monotonic
//! clock). It performs no I/O, reads no clock and draws no random number.
//!
//! The caller's loop is always the same: after any call that may have changed something, take
//! [`Mux::next_event`] until it is empty, then [`Mux::transmit`] while [`Mux::wants_transmit`]
//! says so, and call [`Mux::handle_timeout`] when [`Mux::next_timeout_ms`] has come.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod budget;
mod buffers;
mod config;
mod error;
pub mod frame;
mod ids;
mod mux;
mod rates;
mod recv;
mod rtt;
mod send;
mod stream;
mod verbs;
mod window;

pub use budget::{Budget, Pressure};
pub use config::{Config, Role, WIRE_WINDOW_BYTES};
pub use error::{End, Event, OpenError, Read, Stats, StreamError, StreamId, Violation, Write};
pub use mux::Mux;
