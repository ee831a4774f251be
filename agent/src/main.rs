//! Entry point: reads the configuration, runs.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use culvert_agent::config::{Config, Refused};
use culvert_telemetry::lifecycle::{self, EXIT_FAILURE, EXIT_USAGE};
use culvert_telemetry::log::{self, LogConfig};

fn main() -> ExitCode {
    let config = match Config::from_process() {
        Ok(config) => config,
        Err(why) => return refused(&why),
    };
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!(%why, "culvert-agent cannot run");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn start(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let level = config.log_level.clone();
    log::init(&LogConfig {
        level,
        format: config.log_format,
        process: "culvert-agent",
    })?;
    lifecycle::forbid_dumps()?;
    culvert_agent::runtime(config.threads)?.block_on(async {
        let shutdown = lifecycle::signals()?;
        Ok(culvert_agent::run(config, &shutdown).await?)
    })
}

fn refused(why: &Refused) -> ExitCode {
    use std::io::Write as _;
    if let Refused::Usage(usage) = why {
        usage.exit();
    }
    let _ = writeln!(std::io::stderr(), "{why}");
    ExitCode::from(EXIT_USAGE)
}
