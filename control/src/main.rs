//! Entry point: reads the configuration, runs.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use culvert_control::config::{Config, Refused};
use culvert_telemetry::lifecycle::{EXIT_FAILURE, EXIT_USAGE};

fn main() -> ExitCode {
    let config = match Config::from_process() {
        Ok(config) => config,
        Err(Refused::Usage(usage)) => usage.exit(),
        Err(Refused::Problems(problems)) => return failed(&problems.join("\n"), EXIT_USAGE),
    };
    if let Some(hash) = &config.hashed {
        let _ = writeln!(std::io::stdout(), "{hash}");
        return ExitCode::SUCCESS;
    }
    match culvert_control::run_process(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why.to_string(), EXIT_FAILURE),
    }
}

fn failed(why: &str, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "culvert-control: {why}");
    ExitCode::from(code)
}
