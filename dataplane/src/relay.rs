//! The role `relay`: two sides that only dial out meet here.
//!
//! `arrive` hears who somebody is, `desk` says whom it meets, `wait` holds it until
//! then, `join` hands both sockets to the engine. No control, no state, no key of
//! any pair.

mod admin;
mod arrive;
mod desk;
mod drain;
mod hall;
mod join;
mod metrics;
mod start;
mod wait;
#[cfg(feature = "hub")]
mod watch;

pub use metrics::describe as describe_metrics;
pub use start::{Addresses, Relay, run};
