//! culvert-net against real sockets on loopback.

mod connect;
mod dial;
mod rig;
mod tls;
mod websocket;
