//! The processes of a quickstart: found beside this binary, logged to files,
//! ended by their own id. Each is a process group of its own, so that Ctrl-C
//! reaches quickstart alone, which drains them in order; should quickstart be
//! killed, the kernel ends them ([`follow`](crate::verb)).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::POLL;
use crate::error::{CliError, Result};

const LINES_SHOWN: usize = 20;
/// How long a child may drain before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A running process of the product.
pub struct Child {
    name: &'static str,
    process: tokio::process::Child,
    log: PathBuf,
}

impl Child {
    /// A command for one of our binaries, with an environment that holds no secret of ours.
    pub fn command(name: &'static str) -> Result<Command> {
        let here = std::env::current_exe().map_err(|why| {
            let fix = "start it by its path";
            CliError::new("no_binary", "this program cannot be found", why, "cli", fix)
        })?;
        let mut command = Command::new(here);
        command
            .args(["follow", &std::process::id().to_string(), "--"])
            .arg(find(name)?);
        command.env_clear();
        for kept in ["PATH", "HOME", "TZ"] {
            command.envs(std::env::var_os(kept).map(|value| (kept, value)));
        }
        Ok(command)
    }

    /// Starts it with its output in `<dir>/<name>.log`.
    pub fn start(name: &'static str, mut command: Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let failed = |why: std::io::Error| {
            let seen = format!("{name}: {why}");
            CliError::new(
                "no_start",
                "a process cannot be started",
                seen,
                "cli",
                "check the file",
            )
        };
        let file = File::create(&log).map_err(failed)?;
        let out = file.try_clone().map_err(failed)?;
        command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(file)
            .kill_on_drop(true)
            .process_group(0);
        let process = command.spawn().map_err(failed)?;
        Ok(Self { name, process, log })
    }

    /// Waits until `probe` says yes; a child that ends first, or is late, is an error.
    pub async fn ready(
        &mut self,
        shown: &str,
        deadline: Duration,
        probe: impl AsyncFn() -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        while !probe().await {
            self.still_runs(self.name)?;
            if start.elapsed() > deadline {
                let seen = format!(
                    "not ready after {} s\n{}",
                    deadline.as_secs(),
                    self.last_lines()
                );
                let what = format!("{} does not come up", self.name);
                return Err(CliError::new(
                    "no_start",
                    &what,
                    seen,
                    shown,
                    "read its last lines",
                ));
            }
            tokio::time::sleep(POLL).await;
        }
        eprintln!(
            "  {shown:<10} ready  {:.1} s",
            start.elapsed().as_secs_f32()
        );
        Ok(())
    }

    /// An error when the process has ended.
    pub fn still_runs(&mut self, name: &str) -> Result<()> {
        match self.process.try_wait() {
            Ok(None) => Ok(()),
            ended => {
                let status = ended.ok().flatten().map(|status| status.to_string());
                let seen = format!("{}\n{}", status.unwrap_or_default(), self.last_lines());
                let what = format!("{name} ended");
                Err(CliError::new(
                    "no_start",
                    &what,
                    seen,
                    name,
                    "read its last lines",
                ))
            }
        }
    }

    /// The end of its log.
    pub fn last_lines(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let skip = text.lines().count().saturating_sub(LINES_SHOWN);
        text.lines()
            .skip(skip)
            .map(|line| format!("    {line}\n"))
            .collect()
    }

    /// Asks it to drain, then ends it.
    pub async fn stop(&mut self) {
        let id = self
            .process
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        if let Some(id) = id {
            // It may have ended by itself in between; then there is nothing to do.
            let _ = kill_process(id, Signal::TERM);
        }
        if tokio::time::timeout(STOP_DEADLINE, self.process.wait())
            .await
            .is_err()
        {
            let _ = self.process.kill().await;
        }
    }
}

/// Waits for Ctrl-C or SIGTERM, or for the first child that ends by itself.
pub async fn wait(children: [&mut Child; 3]) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).map_err(|why| {
        CliError::new(
            "no_signal",
            "no signal handler",
            why,
            "cli",
            "end the children by hand",
        )
    })?;
    let [a, b, c] = children;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => return Ok(()),
        _ = term.recv() => return Ok(()),
        _ = a.process.wait() => {}
        _ = b.process.wait() => {}
        _ = c.process.wait() => {}
    }
    for child in [a, b, c] {
        child.still_runs(child.name)?;
    }
    Ok(())
}

/// The path of one of our binaries: beside this one, else on the PATH.
///
/// # Errors
/// When it stands in neither.
pub fn find(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = here.into_iter().chain(std::env::split_paths(&path));
    dirs.map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            let fix = "put the four binaries into one directory, or on the PATH";
            CliError::new("no_binary", "a binary is missing", name, "cli", fix)
        })
}
