//! State machines against reference models, over random interleavings.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod moving;
mod registry;
mod session;
