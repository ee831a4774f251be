//! The place of a benchmark: one namespace with loopback, rivals as fresh processes in it.

mod congestion;
mod culvert;
mod hop;
mod nginx;
mod pair;
mod person;
mod place;
mod rivals;
mod ssh;
mod tunnel;
mod variant;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::delay::Delayer;
use crate::testbed::{Cgroup, Namespace, Process, wait_for};

use place::Place;

pub use place::{Host, Topology};
pub use rivals::{Given, Rivals};
pub use variant::Variant;

/// CPU of hub and agent.
pub const RELAY_CPU: usize = 0;
/// CPU of generator and service.
pub const LOAD_CPU: usize = 1;
/// How long a rival may take until it serves.
const START_MAX: Duration = Duration::from_secs(15);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Where the service listens.
pub const SERVICE_PORT: u16 = 9001;
/// Where a relay or a tunnel takes the generator's connections.
const ENTRY_PORT: u16 = 9110;
/// The name that sealed connections ask for.
pub const SEALED_NAME: &str = "perf.test";

/// Namespaces and a directory of a run; removed on drop.
pub struct Lab {
    place: Place,
    /// Our binaries, release build.
    pub binaries: PathBuf,
    /// Rivals that no distribution has.
    pub rivals: Rivals,
    directory: tempfile::TempDir,
}

impl Lab {
    /// Makes the namespaces and sets what many connections need.
    ///
    /// # Errors
    /// No root, or a setting is refused.
    pub fn new(binaries: &Path, rivals: &Rivals, topology: Topology) -> Result<Lab> {
        let directory = tempfile::Builder::new().prefix("culvert-lab-").tempdir()?;
        let lab = Lab {
            place: Place::new(topology)?,
            binaries: binaries.to_owned(),
            rivals: rivals.clone(),
            directory,
        };
        lab.make_certificate()?;
        Ok(lab)
    }

    /// Where `host` stands.
    pub fn at(&self, host: Host) -> &Namespace {
        self.place.at(host)
    }

    /// The address of `host` as `from` sees it.
    pub fn address(&self, host: Host, from: Host) -> IpAddr {
        self.place.address(host, from)
    }

    /// The service as `from` sees it.
    pub fn service(&self, from: Host) -> SocketAddr {
        (self.address(Host::Site, from), SERVICE_PORT).into()
    }

    /// The relay's entry as the generator sees it.
    fn entry(&self) -> SocketAddr {
        (self.address(Host::Hub, Host::Client), ENTRY_PORT).into()
    }

    /// A text in which places of this machine have names.
    pub(crate) fn without_places(&self, text: &str) -> String {
        let text = text.replace(&*self.directory().to_string_lossy(), "LAB");
        crate::run::without_places(&text, &self.binaries, &self.rivals)
    }

    /// Waits until the entry's port can be bound: the kernel lets a ring's listener go some time
    /// after its process.
    fn await_free_entry(&self) -> Result<()> {
        let entry = SocketAddr::from(([0, 0, 0, 0], ENTRY_PORT));
        let hub = self.at(Host::Hub);
        wait_for("the entry's port is free", START_MAX, || {
            hub.run(|| TcpListener::bind(entry)).ok()
        })
        .map(drop)
    }

    /// Of the long path, where there is one.
    pub fn delayer(&self) -> Option<&Delayer> {
        self.place.delayer.as_ref()
    }

    /// A path in the lab's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// `cert.pem` and `key.pem` for localhost, their own authority.
    fn make_certificate(&self) -> Result<()> {
        let output = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ])
            .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args([
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:10.77.2.1,IP:10.77.8.1",
            ])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args([
                "-out",
                &self.text("cert.pem"),
                "-keyout",
                &self.text("key.pem"),
            ])
            .output()
            .context("running openssl")?;
        anyhow::ensure!(
            output.status.success(),
            "openssl: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// What else host.txt records of the lab.
pub const CONGESTION_CONTROL: &str = congestion::ALGORITHM;

/// Settings of the namespace, recorded in host.txt.
pub const SETTINGS: &[&str] = &[
    "net.ipv4.ip_local_port_range=1024 65000",
    "net.core.somaxconn=4096",
    // A variant's old connections must not hold the ports of the next one's listeners.
    "net.ipv4.tcp_max_tw_buckets=0",
    "net.ipv4.ip_local_reserved_ports=9000-9299",
];

/// A variant's processes; ended on drop.
#[derive(Default)]
pub struct Running {
    /// Whom the generator connects to; the service itself when absent.
    pub entry: Option<SocketAddr>,
    /// What precedes the service's path.
    pub prefix: String,
    /// Lines that each request carries beside its own.
    pub fields: String,
    /// What each connection sends first, and the service skips.
    pub preface: Vec<u8>,
    /// Processes of the first hop.
    pub hub: Vec<Process>,
    /// Processes of the second hop.
    pub agent: Vec<Process>,
    /// Processes that carry no byte, and are not counted.
    pub beside: Vec<Process>,
    /// What counts the CPU of ended children too, hub and agent.
    pub groups: [Option<Cgroup>; 2],
}

impl Running {
    /// Ids of the first hop's processes, children included.
    pub fn hub_pids(&self) -> Vec<u32> {
        with_children(&self.hub)
    }

    /// Ids of the second hop's processes, children included.
    pub fn agent_pids(&self) -> Vec<u32> {
        with_children(&self.agent)
    }
}

/// One plain request from inside, for probes and metrics: the whole answer as text.
///
/// # Errors
/// When nothing listens or nothing comes within 5 s.
pub fn get(at: &Namespace, from: SocketAddr, path: &str) -> Result<String> {
    at.run(|| {
        let mut stream = TcpStream::connect(from)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: perf.test\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

fn with_children(processes: &[Process]) -> Vec<u32> {
    let mut pids: Vec<u32> = processes.iter().map(Process::pid).collect();
    let mut next = 0;
    while let Some(pid) = pids.get(next).copied() {
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        pids.extend(
            children
                .split_whitespace()
                .filter_map(|word| word.parse::<u32>().ok()),
        );
        next += 1;
    }
    pids
}

/// Where the swarm and the tests find the hub of [`Lab::hub`].
pub use culvert::{Hub, TOKEN};
