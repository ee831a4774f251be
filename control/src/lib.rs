//! The process that decides: clusters, tokens, registry. It never carries a
//! tunnel byte, and no byte waits for it.
#![forbid(unsafe_code)]

pub mod api;
pub mod audit;
pub mod cluster;
pub mod config;
pub mod connect;
pub mod enrol;
pub mod events;
pub mod fanout;
pub mod fleet;
pub mod hub;
pub mod identity;
pub mod license;
pub mod metrics;
pub mod outbound;
pub mod registry;
mod start;
pub mod store;
pub mod token;

pub use start::{StartError, run, run_process};
