//! `culvert debug`.

use clap::{Args, Subcommand};

use super::{Dataplane, seconds};

/// Longest trace in seconds, as the data plane has it.
pub const TRACE_SECONDS_MAX: u64 = 600;

/// `culvert debug`.
#[derive(Subcommand)]
pub enum Debug {
    /// Ask the kernel of a data plane how long bytes wait to be read, and why it sends resets. Every
    /// socket of that host pays a little as long as it runs.
    Trace(Trace),
}

/// `culvert debug trace`.
#[derive(Args)]
pub struct Trace {
    /// Which data plane, on this host.
    #[command(flatten)]
    pub at: Dataplane,
    /// Only the connections of this cluster; resets are told of all.
    #[arg(long)]
    pub cluster: Option<String>,
    /// How long, such as 30s or 5m, at most 10m. It ends by itself, and with this program.
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = trace_seconds)]
    pub seconds: u64,
}

fn trace_seconds(text: &str) -> Result<u64, String> {
    let seconds = seconds(text)?;
    match (1..=TRACE_SECONDS_MAX).contains(&seconds) {
        true => Ok(seconds),
        false => Err(format!("{text:?} is not from 1s to {TRACE_SECONDS_MAX}s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_bounded() {
        assert_eq!(trace_seconds("10m"), Ok(600));
        for bad in ["0s", "601s", "11m", "1h"] {
            assert!(trace_seconds(bad).is_err(), "{bad}");
        }
    }
}
