//! Entry point: reads the configuration, runs.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use culvert_control::config::{Asked, Config, Refused};
use culvert_telemetry::lifecycle::{self, EXIT_FAILURE, EXIT_USAGE};
use culvert_telemetry::log::{self, LogConfig};

fn main() -> ExitCode {
    let done = match Asked::from_process() {
        Ok(Asked::Run(config)) => start(*config),
        Ok(Asked::DevCerts { dir, names }) => {
            culvert_control::dev_certs(&dir, &names).map_err(Into::into)
        }
        Err(Refused::Usage(usage)) => usage.exit(),
        Err(Refused::Problems(problems)) => {
            return failed(&problems.join("\n"), EXIT_USAGE);
        }
    };
    done.map_or_else(
        |why| failed(&why.to_string(), EXIT_FAILURE),
        |()| ExitCode::SUCCESS,
    )
}

fn start(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let level = config.log_level.clone();
    log::init(&LogConfig {
        level,
        format: config.log_format,
        process: "culvert-control",
    })?;
    lifecycle::forbid_dumps()?;
    // The store, its journal and the keys are nobody else's.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = lifecycle::signals()?;
        Ok(culvert_control::run(config, &shutdown).await?)
    })
}

fn failed(why: &str, code: u8) -> ExitCode {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "culvert-control: {why}");
    ExitCode::from(code)
}
