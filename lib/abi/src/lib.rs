//! What the eBPF observer's two sides share: the programs in the kernel and their reader.
//!
//! Layouts are part of the interface: both sides are built from this crate, and
//! [`VERSION`] is compared when the programs are loaded. Everything here is arithmetic on its
//! arguments: no I/O, no clock, no allocation. Hot functions avoid panics and slices, so that
//! the kernel's verifier accepts them.
#![no_std]
#![forbid(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "sequence numbers, ticks and offsets are kept modulo a power of two"
)]

pub mod arm;
pub mod bucket;
pub mod keys;
mod kinds;
pub mod lane;
pub mod maps;
pub mod offset;
mod records;
pub mod thin;
pub mod ticks;
pub mod wait;

pub use kinds::{CloseKind, Kind, Leg, Own, Role};
pub use records::{Close, Cnt, Ident, Pair, Stat};

/// Version of every layout here; changes whenever one of them does.
pub const VERSION: u16 = 2;

/// [`Ident::pair_slot`] of a socket that is not joined to another.
pub const NO_SLOT: u32 = u32::MAX;

/// Cluster index of connections whose cluster is not known yet.
pub const UNROUTED: u16 = 0;
/// Cluster index of pair mode, which has no clusters.
pub const PAIR_CLUSTER: u16 = 1;
/// Cluster index that all clusters beyond the limit share.
pub const OVERFLOW: u16 = 2;
/// Cluster index of the observer's own test; never exported.
pub const SELF_TEST: u16 = 3;
/// Lowest cluster index of a real cluster.
pub const FIRST_CLUSTER: u16 = 4;
