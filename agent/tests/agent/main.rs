//! The agent's library against real services and a real hub side, over loopback.

mod allow;
mod request;
mod support;
mod upgrade;
