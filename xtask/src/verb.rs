//! The verbs of `cargo xtask`.

use clap::Parser;

use crate::{
    build_ebpf, codegen, docs, e2e, fuzz, instructions, kernels, perf, quickstart, soak, test, tidy,
};

/// Build, test and run Culvert.
#[derive(Parser)]
#[command(name = "cargo xtask")]
pub enum Verb {
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
    /// Count the instructions of the hot steps, against benches/instructions.txt.
    Instructions,
    /// The long proofs: models with millions of interleavings, long transfers.
    Soak(soak::Args),
    /// Every fuzz target for a bounded time.
    Fuzz(fuzz::Args),
    /// Write the generated references in docs/, or check that they are current.
    Docs(docs::Args),
    /// Build the observer's programs for the kernel, or check those that are committed.
    BuildEbpf(build_ebpf::Args),
    /// Run the observer's programs on other kernels, emulated.
    Kernels(kernels::Args),
    /// Write the generated code of lib/rpc anew.
    Codegen,
}

impl Verb {
    /// Does it.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Quickstart(args) => quickstart::run(&args),
            Self::Test(args) => test::run(&args),
            Self::E2e(args) => e2e::run(&args),
            Self::Tidy => tidy::run(),
            Self::Perf(args) => perf::run(&args),
            Self::Instructions => instructions::run(),
            Self::Soak(args) => soak::run(&args),
            Self::Fuzz(args) => fuzz::run(&args),
            Self::Docs(args) => docs::run(&args),
            Self::BuildEbpf(args) => build_ebpf::run(&args),
            Self::Kernels(args) => kernels::run(&args),
            Self::Codegen => codegen::run(),
        }
    }
}
