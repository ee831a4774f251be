//! Dials out from the private side and joins streams to local services.
//!
//! `connect` keeps a session with the hub, `serve` answers its streams from the
//! one configured `upstream`. Nothing else is ever dialled.
#![forbid(unsafe_code)]

pub mod config;
pub mod credential;
pub mod metrics;
pub mod serve;
pub mod target;
pub mod upstream;
