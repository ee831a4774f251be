//! Pairs under load.

mod bytes;
