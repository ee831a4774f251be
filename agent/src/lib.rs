//! Dials out from the private side and joins streams to local services.
//!
//! ```text
//!  connect ──► session ──► serve ──► upstream ──► the one target
//! ```
//! `connect` keeps a session with the hub, `session` takes its streams, `serve`
//! answers one request on each, `upstream` holds the connections to the target.
//! Nothing but hub, proxy and target is ever dialled.
#![forbid(unsafe_code)]

pub mod config;
pub mod connect;
pub mod credential;
pub mod health;
pub mod metrics;
pub mod serve;
pub mod session;
mod start;
pub mod target;
pub mod upstream;

pub use start::{StartError, run, run_process};
