//! Signing in at an OpenID provider: through the whole API, against an issuer over real TLS that
//! is made here, so that it can lie.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests, whose figures are part of what they show"
)]

mod attacks;
mod issuer;
mod keys;
mod outage;
mod people;
#[path = "../room/site.rs"]
mod room;
mod site;
mod tokens;
