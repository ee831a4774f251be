//! What every role of this program needs to start: threads, listeners, limits.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::BorrowedFd;
use std::thread::JoinHandle;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use culvert_engine::Backend;
use culvert_net::listen::{ListenOptions, Listener};
use culvert_telemetry::lifecycle;
use culvert_telemetry::log::{self, LogConfig, LogFormat};

use crate::runtime::Runtime;

/// Descriptors kept for files, logs, control and the admin port.
const DESCRIPTORS_KEPT: u64 = 128;

/// Why a data plane does not start. Nothing was bound when the configuration
/// was at fault.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something the configuration names is unusable.
    #[error("{0}")]
    Config(String),
    /// The operating system refuses something.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// What a process does before anything else.
pub struct Process<'a> {
    /// Level or filter of the log.
    pub log_level: &'a str,
    /// Format of the log.
    pub log_format: LogFormat,
    /// Leave core dumps and debuggers allowed.
    pub debuggable: bool,
}

impl Process<'_> {
    /// Logs, dumps, descriptors.
    ///
    /// # Errors
    /// A log filter that does not parse, or the operating system's.
    pub fn prepare(&self) -> Result<(), StartError> {
        let logs = LogConfig {
            level: self.log_level.to_owned(),
            format: self.log_format,
            process: "culvert-dataplane",
        };
        log::init(&logs).map_err(|why| StartError::Config(why.to_string()))?;
        if self.debuggable {
            tracing::warn!("--debuggable: core dumps and debuggers may read secrets");
        } else {
            lifecycle::forbid_dumps()?;
        }
        raise_descriptor_limit();
        raise_locked_memory_limit();
        Ok(())
    }
}

/// Told once, when a thread serves or cannot.
pub type Started = std::sync::mpsc::Sender<Result<(), StartError>>;

/// Starts a named thread with its runtime and waits until it says that it serves.
pub fn spawn<F, W>(name: &str, backend: Backend, work: F) -> Result<JoinHandle<()>, StartError>
where
    F: FnOnce(Started) -> W + Send + 'static,
    W: Future<Output = Result<(), StartError>>,
{
    let (started, wait) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let failed = started.clone();
            let runtime = Runtime::new(backend).map_err(StartError::from);
            let ended = runtime.and_then(|runtime| runtime.block_on(work(started)));
            if let Err(why) = ended {
                let _ = failed.send(Err(why));
            }
        })?;
    match wait.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(why)) => Err(why),
        Err(_) => Err(io::Error::other("a thread ended before it served").into()),
    }
}

/// As many descriptors as the system allows this process.
fn raise_descriptor_limit() {
    raise(Resource::Nofile, getrlimit(Resource::Nofile).maximum);
}

/// Rings count as locked memory of the user, over all of its processes, unless the
/// process may lock any amount; root may, until the observer gives that up.
fn raise_locked_memory_limit() {
    if !raise(Resource::Memlock, None) {
        raise(Resource::Memlock, getrlimit(Resource::Memlock).maximum);
    }
}

/// Whether the limit is this now; `None` is none.
fn raise(resource: Resource, limit: Option<u64>) -> bool {
    let raised = Rlimit {
        current: limit,
        maximum: limit,
    };
    let set = setrlimit(resource, raised);
    if let Err(why) = set {
        tracing::debug!(%why, ?resource, "a limit stays");
    }
    set.is_ok()
}

/// Connections that one listener may have: a half of the descriptors.
pub fn connections_max() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current;
    let share = descriptors
        .unwrap_or(u64::MAX)
        .saturating_sub(DESCRIPTORS_KEPT)
        / 2;
    usize::try_from(share).unwrap_or(usize::MAX).max(16)
}

/// Binds all addresses of both families where the host has both, else of the one it has.
/// `bound` is shown the socket before it listens.
pub fn bind(
    addr: SocketAddr,
    options: ListenOptions,
    bound: impl Fn(BorrowedFd<'_>),
) -> io::Result<Listener> {
    match Listener::bind_told(addr, options, &bound) {
        Err(_) if addr.is_ipv6() && addr.ip().is_unspecified() && !has_ipv6() => {
            let addr = (Ipv4Addr::UNSPECIFIED, addr.port()).into();
            Listener::bind_told(addr, options, &bound)
        }
        made => made,
    }
}

fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

/// Binds a listener of operators.
///
/// # Errors
/// The operating system's; the text names the address.
pub fn bind_admin(addr: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(addr)
        .map_err(|why| io::Error::new(why.kind(), format!("cannot listen on {addr}: {why}")))
}
