//! Entry point: reads the configuration, runs the data plane.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use culvert_dataplane::config::{ConfigError, Job};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Job::from_process() {
        Ok(job) => culvert_dataplane::run(job),
        Err(ConfigError::Usage(usage)) => usage.exit(),
        Err(ConfigError::Problems(problems)) => refuse(&problems.to_string()),
    }
}

#[expect(
    clippy::print_stderr,
    reason = "there is no log before there is a configuration"
)]
fn refuse(why: &str) -> ExitCode {
    eprint!("culvert-dataplane: {why}");
    ExitCode::from(culvert_telemetry::lifecycle::EXIT_USAGE)
}
