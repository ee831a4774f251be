//! Entry point: reads the configuration, runs.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use culvert_control::config::{Asked, Refused};
use culvert_telemetry::lifecycle::{EXIT_FAILURE, EXIT_USAGE};

fn main() -> ExitCode {
    let done: Result<(), Box<dyn Error>> = match Asked::from_process() {
        Ok(Asked::Run(config)) => culvert_control::run_process(*config),
        Ok(Asked::DevCerts { dir, names }) => {
            culvert_control::dev_certs(&dir, &names).map_err(Into::into)
        }
        Err(Refused::Usage(usage)) => usage.exit(),
        Err(Refused::Problems(problems)) => return failed(&problems.join("\n"), EXIT_USAGE),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why.to_string(), EXIT_FAILURE),
    }
}

fn failed(why: &str, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "culvert-control: {why}");
    ExitCode::from(code)
}
