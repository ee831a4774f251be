//! Stores: what both kinds promise, and what each kind refuses.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod file;
mod promises;
mod secret;
mod stub;
