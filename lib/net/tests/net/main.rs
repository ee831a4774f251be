//! culvert-net against real sockets on loopback.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod carrier;
mod connect;
mod dial;
mod greeting;
mod hangup;
mod introduction;
mod moving;
mod proofs;
mod radar;
mod relay;
mod rig;
mod silence;
mod tls;
mod websocket;
mod windows;
