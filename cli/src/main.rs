//! `culvert`, the command line over control, data plane and agent.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line talks to a terminal"
)]

mod api;
mod args;
mod dataplane;
mod error;
mod login;
mod output;
mod quickstart;
mod top;
mod verb;

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    let cli = args::Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime needs only an epoll descriptor");
    match runtime.block_on(verb::run(cli)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{error}");
            std::process::ExitCode::from(error.exit_code())
        }
    }
}
