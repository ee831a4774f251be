//! `culvert-perf`: runs scenarios and writes a run's directory.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    culvert_perf::command::run(&clap::Parser::parse())
}
