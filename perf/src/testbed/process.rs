//! A real process in a namespace: its output in a file, ended by its own id.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{Cgroup, Namespace, Testbed, wait_for};

/// How to start a process.
pub struct Spawn {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    cpu: Option<usize>,
    entrance: Option<PathBuf>,
}

impl Spawn {
    /// `program` is a path, or a name looked up in the path.
    pub fn new(program: impl AsRef<OsStr>) -> Spawn {
        Spawn {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            cpu: None,
            entrance: None,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Spawn {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    /// Adds a variable. Nothing of our own environment but PATH is inherited.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Spawn {
        self.environment
            .push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Keeps it on one CPU.
    #[must_use]
    pub fn cpu(mut self, cpu: usize) -> Spawn {
        self.cpu = Some(cpu);
        self
    }

    /// Counts its CPU time, and that of its children, in a group.
    #[must_use]
    pub fn counted_by(mut self, group: Option<&Cgroup>) -> Spawn {
        self.entrance = group.map(Cgroup::entrance);
        self
    }

    /// Starts it in `namespace`; `name` names its log file in the testbed's directory.
    ///
    /// # Errors
    /// When the program or its log file cannot be opened.
    pub fn start(self, bed: &Testbed, namespace: &Namespace, name: &str) -> Result<Process> {
        self.start_in(bed.directory(), namespace, name)
    }

    /// As [`Spawn::start`], with the log in `directory`.
    ///
    /// # Errors
    /// When the program or its log file cannot be opened.
    pub fn start_in(self, directory: &Path, namespace: &Namespace, name: &str) -> Result<Process> {
        let log = directory.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = namespace.command("env");
        command.arg("-i").arg(with_equals(
            "PATH",
            &std::env::var_os("PATH").unwrap_or_default(),
        ));
        for (name, value) in &self.environment {
            command.arg(with_equals(name, value));
        }
        if let Some(cpu) = self.cpu {
            command.args(["taskset", "-c", &cpu.to_string()]);
        }
        let child = command
            .arg(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        if let Some(entrance) = &self.entrance {
            // `ip netns exec` hides the host's /sys from the child.
            std::fs::write(entrance, child.id().to_string())
                .with_context(|| format!("counting {name}"))?;
        }
        Ok(Process {
            child,
            name: name.to_owned(),
            log,
            ended: None,
        })
    }
}

fn with_equals(name: impl AsRef<OsStr>, value: &OsStr) -> OsString {
    let mut text = name.as_ref().to_owned();
    text.push("=");
    text.push(value);
    text
}

/// A running process; killed and waited for on drop.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Its process id (`ip netns exec` and `env` have become the program).
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it has printed so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until it accepts TCP at `address`, seen from inside `namespace`.
    ///
    /// # Errors
    /// When it ends first or `limit` passes: the text ends with its last lines.
    pub fn wait_port(
        &mut self,
        namespace: &Namespace,
        address: SocketAddr,
        limit: Duration,
    ) -> Result<()> {
        self.wait_until(&format!("accept at {address}"), limit, |_| {
            namespace.probe(address).then_some(())
        })
    }

    /// Waits until its log holds `text`.
    ///
    /// # Errors
    /// As [`Process::wait_port`].
    pub fn wait_log(&mut self, text: &str, limit: Duration) -> Result<()> {
        self.wait_until(&format!("a line with {text:?}"), limit, |process| {
            process.log().contains(text).then_some(())
        })
    }

    /// Waits for any condition while the process lives.
    ///
    /// # Errors
    /// As [`Process::wait_port`].
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Process) -> Option<T>,
    ) -> Result<T> {
        let what = format!("{}: {what}", self.name);
        let waited = wait_for(&what, limit, || match self.status() {
            Some(status) => Some(Err(status)),
            None => condition(self).map(Ok),
        });
        match waited {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => bail!("{what}: ended with {status}\n{}", self.tail()),
            Err(error) => bail!("{error}\n{}", self.tail()),
        }
    }

    /// How it ended, if it did.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{}: end", self.name);
        wait_for(&what, limit, || self.status()).with_context(|| self.tail())
    }

    /// `kill -9`, and proof that it is gone.
    ///
    /// # Errors
    /// When the kernel refuses or it is still there after 5 s.
    pub fn kill_9(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_end(Duration::from_secs(5)).map(drop)
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends SIGSTOP and proves by its state that it stands.
    ///
    /// # Errors
    /// When it has ended already, or does not stop within 5 s.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let stat = format!("/proc/{}/stat", self.pid());
        wait_for("SIGSTOP bites", Duration::from_secs(5), || {
            let text = std::fs::read_to_string(&stat).ok()?;
            text.rsplit(')')
                .next()?
                .trim_start()
                .starts_with('T')
                .then_some(())
        })
    }

    /// Sends SIGCONT.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Its resident memory now, KiB.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn resident_kib(&self) -> Result<u64> {
        memory_kib(self.pid(), "VmRSS")
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.status() {
            bail!("{} has ended with {status}\n{}", self.name, self.tail());
        }
        // Not waited for yet, so the id cannot belong to anybody else.
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a child has a pid")?, signal)?;
        Ok(())
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        #[expect(
            clippy::print_stdout,
            reason = "shown by the test runner for failed tests only"
        )]
        if std::thread::panicking() {
            println!("--- {} (last lines)\n{}", self.name, self.tail());
        }
    }
}

/// A line of `/proc/<pid>/status`, such as `VmRSS` or `VmHWM`, in KiB.
///
/// # Errors
/// When the process or the line does not exist.
pub fn memory_kib(pid: u32, line: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|text| text.strip_prefix(line)?.strip_prefix(':'))
        .and_then(|value| value.trim().trim_end_matches("kB").trim().parse().ok())
        .with_context(|| format!("no {line} in the status of {pid}"))
}
