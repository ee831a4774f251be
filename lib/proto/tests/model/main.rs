//! State machines against reference models, over random interleavings.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod moving;
mod registry;
mod relay;
mod session;

/// As many cases as `PROPTEST_CASES` says (`cargo xtask soak`), else `few`.
fn cases(few: u32) -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(few)
}
