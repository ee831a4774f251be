//! Our own data plane and agent, release build, one worker thread each.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Host, LOCAL, Lab, RELAY_CPU, Running, SEALED_NAME, START_MAX, get};
use crate::tcp::client_hello;
use crate::testbed::{Cgroup, Process, Spawn};

/// What every cluster's token begins with; its end is the cluster's name.
pub const TOKEN: &str = "lab-token-0123456789abcdef";

/// A data plane on a clusters file.
pub struct Hub {
    /// The process.
    pub process: Process,
    /// Where agents dial.
    pub public: SocketAddr,
    /// Where requests and `/metrics` are.
    pub internal: SocketAddr,
}

/// What the agent's leg of a route may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leg {
    /// Everything in the clear, on both sides' word.
    Plain,
    /// TLS of Culvert's own.
    Encrypted,
    /// The client's own TLS, unopened.
    Sealed,
}

/// How a data plane is started.
struct Options<'a> {
    tls: bool,
    io_engine: &'a str,
    /// Null where `more` says whence the state comes.
    clusters: serde_json::Value,
    more: &'a [&'a str],
    /// The tier of the eBPF observer; without one it is off.
    observer: Option<&'a str>,
    group: Option<&'a Cgroup>,
}

/// The observer watches its own cgroup, which `ip netns exec` hides.
const WITH_CGROUP: &str = "mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"";

impl Lab {
    /// Starts a data plane for these clusters; `tls` on the agents' port or on none;
    /// session threads on `io_engine`. The token of a
    /// cluster is [`TOKEN`] and its name.
    ///
    /// # Errors
    /// When it does not start.
    pub fn hub_for(&self, tls: bool, io_engine: &str, names: &[String]) -> Result<Hub> {
        let entries: Vec<_> = names
            .iter()
            .map(|name| serde_json::json!({"id": name, "token": format!("{TOKEN}{name}")}))
            .collect();
        self.data_plane(&Options {
            tls,
            io_engine,
            clusters: entries.into(),
            more: &[],
            observer: None,
            group: None,
        })
    }

    /// A data plane without TLS that takes its state from `source`.
    pub(super) fn data_plane_of(&self, source: &[&str]) -> Result<Hub> {
        self.data_plane(&Options {
            tls: false,
            io_engine: "auto",
            clusters: serde_json::Value::Null,
            more: source,
            observer: None,
            group: None,
        })
    }

    /// An agent for the HTTP service at `service`.
    pub(super) fn http_agent(&self, hub: &Hub, tls: bool, service: SocketAddr) -> Result<Process> {
        let service = service.to_string();
        let kind = ["--target-kind", "http", "--plain-target"];
        let target = [&["--target", service.as_str()][..], &kind].concat();
        self.agent(hub, tls, &target, None)
    }

    fn data_plane(&self, options: &Options<'_>) -> Result<Hub> {
        use std::os::unix::fs::PermissionsExt;
        let clusters = self.path("clusters.json");
        std::fs::write(&clusters, options.clusters.to_string())?;
        std::fs::set_permissions(&clusters, std::fs::Permissions::from_mode(0o600))?;
        let port = 9201;
        let internal = SocketAddr::from((LOCAL, 9202));
        let program = self.binaries.join("culvert-dataplane");
        let observed = match options.observer {
            None => Spawn::new(program).args(["--ebpf", "off"]),
            Some(tier) => Spawn::new("sh")
                .args(["-c", WITH_CGROUP, "sh", &program.to_string_lossy()])
                .args(["--ebpf", "require", "--ebpf-tier-max", tier]),
        };
        let mut spawn = observed
            .args(["--addr", &format!("0.0.0.0:{port}")])
            .args(["--internal-addr", &internal.to_string()])
            .args(["--threads", "1", "--log-level", "warn"])
            .args(["--io-engine", options.io_engine])
            .args(options.more)
            .counted_by(options.group)
            .cpu(RELAY_CPU);
        if !options.clusters.is_null() {
            spawn = spawn.args(["--clusters", &clusters.to_string_lossy()]);
        }
        if options.tls {
            spawn = spawn.args(["--tls-cert", &self.text("cert.pem")]).args([
                "--tls-key",
                &self.text("key.pem"),
                "--internal-plain",
            ]);
        }
        let mut process = spawn.start_in(self.directory(), self.at(Host::Hub), "dataplane")?;
        let public = SocketAddr::from((self.address(Host::Hub, Host::Site), port));
        process.wait_port(self.at(Host::Site), public, START_MAX)?;
        process.wait_port(self.at(Host::Hub), internal, START_MAX)?;
        Ok(Hub {
            process,
            public,
            internal,
        })
    }

    fn agent(
        &self,
        hub: &Hub,
        tls: bool,
        more: &[&str],
        group: Option<&Cgroup>,
    ) -> Result<Process> {
        let scheme = if tls { "wss" } else { "ws" };
        let health = SocketAddr::from((LOCAL, 9203));
        let mut spawn = Spawn::new(self.binaries.join("culvert-agent"))
            .env("TOKEN", format!("{TOKEN}dev"))
            .env("TOKIO_WORKER_THREADS", "1")
            .args(["--server", &format!("{scheme}://{}/agent", hub.public)])
            .args(["--health-addr", &health.to_string(), "--log-level", "warn"])
            .args(["--state-dir", &self.text("agent-state")])
            .args(more)
            .counted_by(group)
            .cpu(RELAY_CPU);
        spawn = if tls {
            spawn.args(["--server-ca-cert", &self.text("cert.pem")])
        } else {
            spawn.args(["--allow-insecure-server"])
        };
        let site = self.at(Host::Site);
        let mut agent = spawn.start_in(self.directory(), site, "agent")?;
        agent.wait_until("session up (/readyz)", START_MAX, |_| {
            get(site, health, "/readyz")
                .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
                .then_some(())
        })?;
        Ok(agent)
    }
}

/// A route from `listen`, a port of the hub, to `service`.
pub(super) fn tcp(
    lab: &Lab,
    leg: Leg,
    observer: Option<&str>,
    listen: SocketAddr,
    service: SocketAddr,
) -> Result<Running> {
    let route = match leg {
        Leg::Sealed => {
            serde_json::json!({"service": "bench", "sealed": SEALED_NAME, "addr": listen})
        }
        _ => serde_json::json!({"service": "bench", "tcp": listen}),
    };
    let (tls, service_flag) = match leg {
        Leg::Plain => (false, "--service"),
        Leg::Encrypted => (true, "--service"),
        Leg::Sealed => (true, "--sealed-service"),
    };
    let plain = "--allow-plaintext-data-channels";
    let trusted: &[&str] = if leg == Leg::Plain { &[plain] } else { &[] };
    lab.await_free_entry()?;
    let groups = [Cgroup::new()?, Cgroup::new()?];
    let hub = lab.data_plane(&Options {
        tls,
        io_engine: "auto",
        clusters: serde_json::json!([
            {"id": "dev", "token": format!("{TOKEN}dev"), "routes": [route]}
        ]),
        more: &[trusted, &["--engine-threads", "1"]].concat(),
        observer,
        group: groups[0].as_ref(),
    })?;
    let service = format!("bench={service}");
    let flags = [trusted, &[service_flag, &service]].concat();
    let agent = lab.agent(&hub, tls, &flags, groups[1].as_ref())?;
    let mut process = hub.process;
    process.wait_port(lab.at(Host::Client), listen, START_MAX)?;
    Ok(Running {
        entry: Some(listen),
        preface: match leg {
            Leg::Sealed => client_hello(SEALED_NAME),
            _ => Vec::new(),
        },
        hub: vec![process],
        agent: vec![agent],
        groups,
        ..Running::default()
    })
}

pub(super) fn start(lab: &Lab, service: SocketAddr, tls: bool, io_engine: &str) -> Result<Running> {
    let hub = lab.hub_for(tls, io_engine, &["dev".to_owned()])?;
    let agent = lab.http_agent(&hub, tls, service)?;
    Ok(Running {
        entry: Some(hub.internal),
        prefix: "/tunnel/dev".to_owned(),
        hub: vec![hub.process],
        agent: vec![agent],
        ..Running::default()
    })
}
