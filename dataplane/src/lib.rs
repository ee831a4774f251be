//! Moves the bytes: accepts clients and agents, relays, counts.
//!
//! `config` says what to do. Of a hub: `subscribe` brings the table, `accept`
//! brings sockets to `tunnel` (agents) and `ingress` (clients), `sessions` joins
//! the two, `drain` ends it; no request waits for control. `relay` is a role of
//! its own, which knows neither control nor state: two sides of a pair meet there.
#![forbid(unsafe_code)]

#[cfg(not(any(feature = "hub", feature = "relay")))]
compile_error!("choose a role: feature hub, relay or both");

#[cfg(feature = "hub")]
mod accept;
#[cfg(feature = "hub")]
mod admin;
#[cfg(feature = "hub")]
mod audit;
mod beats;
#[cfg(feature = "hub")]
mod certified;
#[cfg(feature = "hub")]
mod channel;
#[cfg(feature = "hub")]
mod clusters;
pub mod config;
#[cfg(feature = "hub")]
mod conn;
#[cfg(feature = "hub")]
mod connections;
#[cfg(feature = "hub")]
mod console;
#[cfg(feature = "hub")]
mod drain;
mod engine;
#[cfg(feature = "hub")]
mod flow;
#[cfg(feature = "hub")]
mod ingress;
mod launch;
#[cfg(feature = "hub")]
mod links;
mod lobby;
#[cfg(feature = "hub")]
mod metrics;
#[cfg(feature = "hub")]
mod observe;
#[cfg(feature = "hub")]
mod pacing;
#[cfg(feature = "hub")]
mod people;
#[cfg(feature = "hub")]
mod plane;
#[cfg(feature = "relay")]
pub mod relay;
#[cfg(feature = "hub")]
mod rights;
#[cfg(feature = "hub")]
mod routes;
mod runtime;
#[cfg(feature = "hub")]
mod session;
#[cfg(feature = "hub")]
mod sessions;
#[cfg(feature = "hub")]
mod snapshot;
#[cfg(feature = "hub")]
mod start;
#[cfg(feature = "hub")]
mod subscribe;
#[cfg(feature = "hub")]
mod table;
#[cfg(feature = "hub")]
mod trace;
#[cfg(feature = "hub")]
mod tunnel;
#[cfg(feature = "hub")]
mod watches;

use std::process::ExitCode;

use config::Job;

#[cfg(feature = "hub")]
pub use config::Config;
pub use launch::StartError;
#[cfg(feature = "hub")]
pub use start::{Addresses, Dataplane};

/// Does what the process was asked to, until a signal ends it.
pub fn run(job: Job) -> ExitCode {
    match job {
        #[cfg(feature = "hub")]
        Job::Hub(config) => start::run(*config),
        #[cfg(feature = "relay")]
        Job::Relay(config) => relay::run(*config),
        #[cfg(feature = "hub")]
        Job::Probe(config) => observe::probe::run(config),
    }
}
