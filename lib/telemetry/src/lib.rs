//! What every Culvert process says about itself: logs, metrics, the admin
//! server and its life cycle.
//!
//! Floor 1: knows neither the wire nor the other crates.
#![forbid(unsafe_code)]

pub mod admin;
pub mod lifecycle;
pub mod log;
pub mod metrics;
