//! The outer leg of a pair: from a fresh connection at a relay to the moment when its bytes are
//! the other side's (P15).
//!
//! The introduction runs in TLS 1.3 and leaves it with MATCHED, at the end of a record, so that
//! both ends go on with the plain socket and the relay can splice. Therefore records are read
//! exactly ([`Records`]), no tickets are sent, and nobody says `close_notify`.

mod client;
mod credential;
mod link;
mod proof;
mod records;
mod seal;
mod server;
mod waiter;

use std::time::Duration;

pub use client::{IntroduceError, Outer, OuterClient, introduce};
pub use credential::{Credential, CredentialError};
pub use link::{Link, Matched, Settled};
pub use proof::{ProofError, verify};
pub use records::Records;
pub use server::{Door, Guest, NotLetIn, OuterServer, receive};
pub use waiter::{Disturbance, Waiter};

/// Whoever is refused is read this long, so that the refusal is not overtaken by a reset.
pub const FAREWELL_MAX: Duration = Duration::from_secs(1);
