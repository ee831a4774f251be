//! The project's tasks: `cargo xtask <verb>`, one file a verb.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task talks to a terminal"
)]

mod build_ebpf;
mod codegen;
mod docs;
mod e2e;
mod fuzz;
mod instructions;
mod kernels;
mod perf;
mod quickstart;
mod run;
mod setup;
mod soak;
mod test;
mod tidy;
mod verb;

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    verb::Verb::parse().run()
}
