//! Moves the bytes: accepts clients and agents, relays, counts.
//!
//! `config` says what to do, `subscribe` brings the table, `accept` brings
//! sockets to `tunnel` (agents) and `ingress` (clients), `sessions` joins the
//! two, `drain` ends it. No request waits for control.
#![forbid(unsafe_code)]

mod accept;
mod admin;
mod channel;
mod clusters;
pub mod config;
mod conn;
mod drain;
mod flow;
mod ingress;
mod links;
mod lobby;
mod metrics;
mod pacing;
mod plane;
mod routes;
mod runtime;
mod session;
mod sessions;
mod snapshot;
mod start;
mod subscribe;
mod table;
mod tunnel;

pub use config::Config;
pub use start::{Addresses, Dataplane, StartError, run};
