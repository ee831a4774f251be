//! One network namespace: made, joined by veth, entered, filtered, removed.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::thread::LinkNameSpaceType;

/// How long [`Namespace::probe`] waits for an answer.
const PROBE_MAX: Duration = Duration::from_millis(250);

/// A network namespace that lives as long as this value.
pub struct Namespace {
    name: String,
    handle: Arc<File>,
}

impl Namespace {
    pub(super) fn new(name: &str) -> Result<Namespace> {
        ip(&["netns", "add", name])?;
        let handle = Arc::new(File::open(format!("/run/netns/{name}"))?);
        let namespace = Namespace {
            name: name.to_owned(),
            handle,
        };
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The name under which `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Joins this namespace (.2) to `other` (.1) by the network 10.77.`net`.0/30.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn join(&self, other: &Namespace, net: u8) -> Result<()> {
        let (near, far) = (format!("v{net}"), format!("w{net}"));
        ip(&[
            "link",
            "add",
            &near,
            "netns",
            &self.name,
            "type",
            "veth",
            "peer",
            "name",
            &far,
            "netns",
            &other.name,
        ])?;
        for (host, link, last) in [(self, &near, 2), (other, &far, 1)] {
            let address = format!("10.77.{net}.{last}/30");
            ip(&["-n", &host.name, "address", "add", &address, "dev", link])?;
            ip(&["-n", &host.name, "link", "set", link, "up"])?;
        }
        Ok(())
    }

    /// A command that runs `program` inside (the process id is the program's own).
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a command inside to its end and gives what it printed.
    ///
    /// # Errors
    /// When it cannot be started or ends with a code other than 0; the text has its stderr.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        finish(command.args(arguments), program)
    }

    /// Loads nft rules inside.
    ///
    /// # Errors
    /// What nft said.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let mut child = self
            .command("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("running nft")?;
        child
            .stdin
            .take()
            .context("nft has a stdin")?
            .write_all(rules.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Runs `work` on a thread of its own inside: every socket made there belongs here.
    ///
    /// # Panics
    /// When `work` does, and when the kernel refuses to enter.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&self.handle);
                work()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A tokio runtime whose threads are inside.
    ///
    /// # Errors
    /// When threads cannot be made.
    pub fn runtime(&self) -> Result<NamespaceRuntime> {
        let handle = Arc::clone(&self.handle);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(move || enter(&handle))
            .build()?;
        Ok(NamespaceRuntime {
            runtime: Some(runtime),
        })
    }

    /// Whether a TCP connection to `target` can be made from inside, within a quarter second.
    pub fn probe(&self, target: SocketAddr) -> bool {
        self.run(|| TcpStream::connect_timeout(&target, PROBE_MAX).is_ok())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        super::sweep::end_processes(&self.name);
        let _ = ip(&["netns", "del", &self.name]);
    }
}

/// A runtime inside a namespace; dropped without waiting for stuck tasks.
pub struct NamespaceRuntime {
    runtime: Option<tokio::runtime::Runtime>,
}

impl NamespaceRuntime {
    /// Runs `work` on the runtime's own threads, so that its sockets are inside.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let runtime = self.runtime.as_ref().expect("present until drop");
        match runtime.block_on(runtime.spawn(work)) {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Starts `work` in the background.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime
            .as_ref()
            .expect("present until drop")
            .spawn(work)
    }
}

impl Drop for NamespaceRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn enter(handle: &File) {
    rustix::thread::move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("the namespace file was opened by root a moment ago");
}

pub(super) fn ip(arguments: &[&str]) -> Result<String> {
    finish(Command::new("ip").args(arguments), "ip")
}

fn finish(command: &mut Command, program: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
