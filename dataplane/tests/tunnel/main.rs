//! The real data plane on loopback, with an agent on the real carrier behind it.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on panics; patterns of test bytes wrap"
)]

mod agent;
mod agents;
mod channels;
mod client;
mod flows;
mod forward;
mod hostile;
mod hub;
mod life;
mod limits;
mod lives;
mod private;
mod radar;
mod relay;
mod sealed;
mod secure;
mod upgrades;
mod vanished;
