//! Our own data plane and agent, release build, one worker thread each.

use std::net::SocketAddr;

use anyhow::Result;

use super::{LOCAL, Lab, RELAY_CPU, Running, START_MAX, get};
use crate::testbed::{Process, Spawn};

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

impl Lab {
    /// Starts a data plane for these clusters; `tls` on the agents' port or on none;
    /// session threads on `io_engine`. The token of a
    /// cluster is [`TOKEN`] and its name.
    ///
    /// # Errors
    /// When it does not start.
    pub fn hub_for(&self, tls: bool, io_engine: &str, names: &[String]) -> Result<Hub> {
        use std::os::unix::fs::PermissionsExt;
        let clusters = self.path("clusters.json");
        let entries: Vec<_> = names
            .iter()
            .map(|name| serde_json::json!({"id": name, "token": format!("{TOKEN}{name}")}))
            .collect();
        std::fs::write(&clusters, serde_json::Value::from(entries).to_string())?;
        std::fs::set_permissions(&clusters, std::fs::Permissions::from_mode(0o600))?;
        let public = SocketAddr::from((LOCAL, 9201));
        let internal = SocketAddr::from((LOCAL, 9202));
        let mut spawn = Spawn::new(self.binaries.join("culvert-dataplane"))
            .args([
                "--addr",
                &public.to_string(),
                "--internal-addr",
                &internal.to_string(),
            ])
            .args(["--clusters", &clusters.to_string_lossy()])
            .args(["--threads", "1", "--log-level", "warn"])
            .args(["--io-engine", io_engine])
            .cpu(RELAY_CPU);
        if tls {
            spawn = spawn.args(["--tls-cert", &self.text("cert.pem")]).args([
                "--tls-key",
                &self.text("key.pem"),
                "--internal-plain",
            ]);
        }
        let mut process = spawn.start_in(self.directory(), &self.namespace, "dataplane")?;
        process.wait_port(&self.namespace, public, START_MAX)?;
        process.wait_port(&self.namespace, internal, START_MAX)?;
        Ok(Hub {
            process,
            public,
            internal,
        })
    }
}

pub(super) fn start(lab: &Lab, service: SocketAddr, tls: bool, io_engine: &str) -> Result<Running> {
    let hub = lab.hub_for(tls, io_engine, &["dev".to_owned()])?;
    let scheme = if tls { "wss" } else { "ws" };
    let health = SocketAddr::from((LOCAL, 9203));
    let mut spawn = Spawn::new(lab.binaries.join("culvert-agent"))
        .env("TOKEN", format!("{TOKEN}dev"))
        .env("TOKIO_WORKER_THREADS", "1")
        .args(["--server", &format!("{scheme}://{}/agent", hub.public)])
        .args([
            "--target",
            &service.to_string(),
            "--target-kind",
            "http",
            "--plain-target",
        ])
        .args(["--health-addr", &health.to_string(), "--log-level", "warn"])
        .args(["--state-dir", &lab.text("agent-state")])
        .cpu(RELAY_CPU);
    spawn = if tls {
        spawn.args(["--server-ca-cert", &lab.text("cert.pem")])
    } else {
        spawn.args(["--allow-insecure-server"])
    };
    let mut agent = spawn.start_in(lab.directory(), &lab.namespace, "agent")?;
    agent.wait_until("session up (/readyz)", START_MAX, |_| {
        get(&lab.namespace, health, "/readyz")
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
            .then_some(())
    })?;
    Ok(Running {
        entry: hub.internal,
        prefix: "/tunnel/dev".to_owned(),
        hub: vec![hub.process],
        agent: vec![agent],
    })
}
