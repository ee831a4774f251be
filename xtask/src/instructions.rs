//! `cargo xtask instructions`: what the hot steps execute, against its limits.

use anyhow::Result;

use crate::{run, setup};

/// Counts in the profile of the tests: nothing is built a second time. A count
/// over its limit in `benches/instructions.txt` fails.
pub fn run() -> Result<()> {
    setup::for_counts()?;
    if !setup::has("valgrind") {
        eprintln!("SKIP instructions: valgrind is not installed (perf/packages.txt)");
        return Ok(());
    }
    run::wait(run::cargo(&[
        "bench",
        "--locked",
        "--workspace",
        "--profile",
        "dev",
        "--bench",
        "instructions",
    ]))
}
