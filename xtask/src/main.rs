//! The project's tasks: `cargo xtask <verb>`, one file a verb.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task talks to a terminal"
)]

mod codegen;
mod e2e;
mod perf;
mod quickstart;
mod run;
mod setup;
mod soak;
mod test;
mod tidy;

use clap::Parser;

/// Build, test and run Culvert.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Verb {
    /// Build everything and run the whole product on this machine.
    Quickstart(quickstart::Args),
    /// Format, lint, tidy, deny and all tests; installs what it needs.
    Test(test::Args),
    /// End-to-end tests alone, optionally filtered.
    E2e(e2e::Args),
    /// The structure of the code against its rules.
    Tidy,
    /// Measure against rivals; writes under perf/runs/.
    Perf(perf::Args),
    /// The long proofs: models with millions of interleavings, long transfers.
    Soak(soak::Args),
    /// Write the generated code of lib/rpc anew.
    Codegen,
}

fn main() -> anyhow::Result<()> {
    match Verb::parse() {
        Verb::Quickstart(args) => quickstart::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::E2e(args) => e2e::run(&args),
        Verb::Tidy => tidy::run(),
        Verb::Perf(args) => perf::run(&args),
        Verb::Soak(args) => soak::run(&args),
        Verb::Codegen => codegen::run(),
    }
}
