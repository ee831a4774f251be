//! The real data plane on loopback, with an agent on the real carrier behind it.

mod agent;
mod agents;
mod client;
mod hostile;
mod hub;
mod life;
mod limits;
mod radar;
mod relay;
mod secure;
mod upgrades;
