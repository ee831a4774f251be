//! Listeners, dialling, TLS, transports and carriers.
//!
//! The only home of rustls, socket options and WebSocket. Everything above speaks `AsyncRead` and
//! `AsyncWrite`; everything below (the mux, the session, the wire) is pure and driven from here.
#![deny(unsafe_code)]

pub mod carrier;
pub mod crypto;
pub mod dial;
pub mod hangup;
pub mod interject;
pub mod introduction;
pub mod listen;
pub mod look;
pub mod peer;
pub mod relay;
pub mod socket;
pub mod tls;
pub mod transport;
pub mod watch;
mod write;
