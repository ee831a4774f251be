//! The real binaries with the flags that the tests need, and the wait until they serve.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_perf::testbed::{
    HUB_FOR_CLIENT, HUB_FOR_SITE, Layout, Namespace, Need, Spawn, Testbed, met, wait_for,
};

use crate::client;
use crate::upstream::Upstream;
use crate::watched::Watched;

/// How long a process may take until it serves.
pub const START_MAX: Duration = Duration::from_secs(15);
/// The port for agents.
pub const PUBLIC: u16 = 8443;
/// The port for `/tunnel/`.
pub const INTERNAL: u16 = 8080;
/// The token of the cluster `dev` in [`Rig`].
pub const DEV_TOKEN: &str = "dev-token-0123456789abcdef";

/// Where the client reaches `/tunnel/`.
pub fn internal() -> SocketAddr {
    (HUB_FOR_CLIENT, INTERNAL).into()
}

/// Where the site reaches the agents' port.
pub fn public() -> SocketAddr {
    (HUB_FOR_SITE, PUBLIC).into()
}

/// Whether a test that wants the testbed and these programs may run.
pub fn ready(test: &str, programs: &[&'static str]) -> bool {
    let mut needs = vec![Need::Root, Need::Namespaces];
    needs.extend(programs.iter().copied().map(Need::Program));
    met(test, &needs)
}

/// The path of one of our binaries.
pub fn binary(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("CULVERT_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => std::env::current_exe()?
            .ancestors()
            .nth(2)
            .context("a test lies in target/<profile>/deps")?
            .to_owned(),
    };
    let path = directory.join(name);
    anyhow::ensure!(
        path.exists(),
        "{} is not built (cargo build -p {name})",
        path.display()
    );
    Ok(path)
}

/// A clusters file of the form of contract A-53.
pub fn clusters(entries: &[(&str, &str)]) -> String {
    let entries: Vec<_> = entries
        .iter()
        .map(|(id, token)| serde_json::json!({"id": id, "token": token}))
        .collect();
    serde_json::Value::from(entries).to_string()
}

/// A data plane on the usual ports of the hub, not waited for.
pub fn spawn_dataplane(bed: &Testbed, name: &str, arguments: &[&str]) -> Result<Watched> {
    let spawn = Spawn::new(binary("culvert-dataplane")?)
        .args(["--addr", "0.0.0.0:8443", "--internal-addr", "0.0.0.0:8080"])
        .args(arguments);
    Watched::start(spawn, bed, &bed.hub, name)
}

/// A data plane that serves.
pub fn dataplane(bed: &Testbed, name: &str, arguments: &[&str]) -> Result<Watched> {
    let mut process = spawn_dataplane(bed, name, arguments)?;
    process.wait_port(&bed.client, internal(), START_MAX)?;
    process.wait_port(&bed.client, (HUB_FOR_CLIENT, PUBLIC).into(), START_MAX)?;
    Ok(process)
}

/// An agent: where it runs, whom it dials, what it serves.
pub struct Agent<'a> {
    pub at: &'a Namespace,
    pub name: &'a str,
    pub server: String,
    pub token: &'a str,
    pub target: String,
    pub health: u16,
    pub arguments: Vec<String>,
}

impl<'a> Agent<'a> {
    /// An agent on the private site for an HTTP service, over plain `ws://`.
    pub fn plain(at: &'a Namespace, name: &'a str, token: &'a str, target: SocketAddr) -> Self {
        Agent {
            at,
            name,
            server: format!("ws://{HUB_FOR_SITE}:{PUBLIC}/agent"),
            token,
            target: target.to_string(),
            health: 8081,
            arguments: [
                "--allow-insecure-server",
                "--plain-target",
                "--target-kind",
                "http",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }

    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Starts it without waiting for its session.
    pub fn spawn(&self, bed: &Testbed) -> Result<Watched> {
        let spawn = Spawn::new(binary("culvert-agent")?)
            .env("TOKEN", self.token)
            .args(["--server", &self.server, "--target", &self.target])
            .args(["--health-addr", &format!("127.0.0.1:{}", self.health)])
            .args([
                "--state-dir",
                &bed.path(&format!("{}-state", self.name)).to_string_lossy(),
            ])
            .args(&self.arguments);
        Watched::start(spawn, bed, self.at, self.name)
    }

    /// Starts it and waits for its session.
    pub fn start(&self, bed: &Testbed) -> Result<Watched> {
        let mut process = self.spawn(bed)?;
        process.wait_until("session up (/readyz)", START_MAX, |_| {
            self.is_ready().then_some(())
        })?;
        Ok(process)
    }

    /// Whether its `/readyz` says 200.
    pub fn is_ready(&self) -> bool {
        let health = SocketAddr::from((IpAddr::V4(Ipv4Addr::LOCALHOST), self.health));
        client::get(self.at, health, "/readyz").is_ok_and(|answer| answer.status == 200)
    }
}

/// The common case: a data plane on a clusters file with the cluster `dev`, an agent, a recording
/// service behind it.
pub struct Rig {
    pub agent: Watched,
    pub dataplane: Watched,
    pub upstream: Upstream,
    pub bed: Testbed,
}

impl Rig {
    pub fn start() -> Result<Rig> {
        Rig::with(Layout::default(), &[], &[])
    }

    pub fn with(layout: Layout, dataplane_args: &[&str], agent_args: &[&str]) -> Result<Rig> {
        let bed = Testbed::new(layout)?;
        let upstream = Upstream::start(&bed.site)?;
        let file = write_clusters(&bed, &[("dev", DEV_TOKEN)])?;
        let mut arguments = vec!["--clusters", file.as_str()];
        arguments.extend_from_slice(dataplane_args);
        let dataplane = dataplane(&bed, "dataplane", &arguments)?;
        let agent = Agent::plain(&bed.site, "agent", DEV_TOKEN, upstream.address)
            .with(agent_args)
            .start(&bed)?;
        Ok(Rig {
            agent,
            dataplane,
            upstream,
            bed,
        })
    }

    pub fn get(&self, target: &str) -> Result<client::Answer> {
        client::get(&self.bed.client, internal(), target)
    }
}

/// Writes a clusters file (0600: it holds tokens) and gives its path.
pub fn write_clusters(bed: &Testbed, entries: &[(&str, &str)]) -> Result<String> {
    use std::os::unix::fs::PermissionsExt;
    let path = bed.path("clusters.json");
    std::fs::write(&path, clusters(entries))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(path.to_string_lossy().into_owned())
}

/// Waits until a request through the tunnel of `cluster` succeeds.
pub fn wait_served(bed: &Testbed, cluster: &str, limit: Duration) -> Result<Duration> {
    let start = std::time::Instant::now();
    wait_for(&format!("requests of {cluster} served"), limit, || {
        client::get(&bed.client, internal(), &format!("/tunnel/{cluster}/id/up"))
            .is_ok_and(|answer| answer.status == 200 && answer.body == b"up")
            .then_some(())
    })?;
    Ok(start.elapsed())
}
