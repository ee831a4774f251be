//! Entry point: reads the configuration, runs.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use culvert_agent::config::{Job, Refused};
use culvert_telemetry::lifecycle::{EXIT_FAILURE, EXIT_USAGE};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let job = match Job::from_process() {
        Ok(job) => job,
        Err(Refused::Usage(usage)) => usage.exit(),
        Err(why) => return refuse(&why),
    };
    match culvert_agent::run_process(job) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!(%why, "culvert-agent cannot run");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "there is no log before there is a configuration"
)]
fn refuse(why: &Refused) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(EXIT_USAGE)
}
