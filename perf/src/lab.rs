//! The place of a benchmark: one namespace with loopback, rivals as fresh processes in it.

mod congestion;
mod culvert;
mod nginx;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::testbed::{Namespace, Process, solitary};

/// CPU of hub and agent.
pub const RELAY_CPU: usize = 0;
/// CPU of generator and service.
pub const LOAD_CPU: usize = 1;
/// How long a rival may take until it serves.
const START_MAX: Duration = Duration::from_secs(15);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A namespace and a directory of a run; removed on drop.
pub struct Lab {
    /// Loopback only, of our own.
    pub namespace: Namespace,
    /// The four binaries, release build.
    pub binaries: PathBuf,
    directory: tempfile::TempDir,
}

impl Lab {
    /// Makes the namespace and sets what many connections need.
    ///
    /// # Errors
    /// No root, or a setting is refused.
    pub fn new(binaries: &Path) -> Result<Lab> {
        let namespace = solitary("lab")?;
        for setting in SETTINGS {
            namespace.output("sysctl", &["-q", "-w", setting])?;
        }
        congestion::set(&namespace)?;
        let directory = tempfile::Builder::new().prefix("culvert-lab-").tempdir()?;
        let lab = Lab {
            namespace,
            binaries: binaries.to_owned(),
            directory,
        };
        lab.make_certificate()?;
        Ok(lab)
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
            .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
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

/// What stands between generator and service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Nothing.
    Direct,
    /// nginx as a reverse proxy on both hops, in the clear.
    Nginx,
    /// The same with TLS between the hops.
    NginxTls,
    /// Data plane and agent, in the clear.
    Culvert,
    /// The same with the data plane's session threads on epoll.
    CulvertEpoll,
    /// The same with TLS on the agent's leg.
    CulvertTls,
}

impl Variant {
    /// Its name in files and plots.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Direct => "direct",
            Variant::Nginx => "nginx two hops",
            Variant::NginxTls => "nginx two hops, TLS",
            Variant::Culvert => "culvert",
            Variant::CulvertEpoll => "culvert, epoll",
            Variant::CulvertTls => "culvert, TLS",
        }
    }

    /// Starts fresh processes in front of the service at `service`.
    ///
    /// # Errors
    /// When one does not start; the text ends with its last lines.
    pub fn start(self, lab: &Lab, service: SocketAddr) -> Result<Running> {
        match self {
            Variant::Direct => Ok(Running {
                entry: service,
                prefix: String::new(),
                hub: Vec::new(),
                agent: Vec::new(),
            }),
            Variant::Nginx => nginx::start(lab, service, false),
            Variant::NginxTls => nginx::start(lab, service, true),
            Variant::Culvert => culvert::start(lab, service, false, "auto"),
            Variant::CulvertEpoll => culvert::start(lab, service, false, "epoll"),
            Variant::CulvertTls => culvert::start(lab, service, true, "auto"),
        }
    }
}

/// A variant's processes; ended on drop.
pub struct Running {
    /// Whom the generator asks.
    pub entry: SocketAddr,
    /// What precedes the service's path.
    pub prefix: String,
    /// Processes of the first hop.
    pub hub: Vec<Process>,
    /// Processes of the second hop.
    pub agent: Vec<Process>,
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
