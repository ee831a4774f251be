//! Dials out from the private side and joins streams to local services.
//!
//! ```text
//!  connect ──► session ──► serve ──► upstream ──► the one target
//! ```
//! `connect` keeps a session with the hub, `session` takes its streams, `serve`
//! answers one request on each, `upstream` holds the connections to the target.
//! A connection to one of the `services` is a `flow`, on a stream or on a data
//! `channel` that the agent dials for it. Nothing but hub, proxy, target and
//! services is ever dialled.
#![forbid(unsafe_code)]

pub mod ceiling;
pub mod channel;
pub mod config;
pub mod connect;
pub mod credential;
pub mod device;
pub mod engine;
pub mod enrol;
pub mod flow;
pub mod forward;
pub mod health;
pub mod metrics;
pub mod mirror;
pub mod pair;
pub mod serve;
pub mod services;
pub mod session;
mod start;
pub mod target;
pub mod upstream;

pub use start::{StartError, run, run_process};
