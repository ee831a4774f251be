//! `tcp` and `sealed` routes: clients' own TCP connections joined to data channels.

mod control;
pub mod etcd;
mod openssl;
pub mod postgres;
pub mod sealed;
pub mod ssh;

use std::net::SocketAddr;

use anyhow::{Context, Result};
use culvert_perf::testbed::{HUB_FOR_CLIENT, Layout, Namespace, SITE, Testbed, wait_for};
use serde_json::{Value, json};

use crate::client;
use crate::hub::{Agent, DEV_TOKEN, START_MAX, dataplane};
use crate::watched::Watched;

/// Both ends trust the network between them: every channel is spliced.
pub const PLAINTEXT: &str = "--allow-plaintext-data-channels";

/// A port forward on a port of the hub.
pub fn tcp(service: &str, port: u16) -> Value {
    json!({"service": service, "tcp": format!("0.0.0.0:{port}")})
}

/// A sealed route on the public listener.
pub fn sealed(service: &str, sni: &str) -> Value {
    json!({"service": service, "sealed": sni})
}

/// A sealed route on a port of its own.
pub fn sealed_at(service: &str, sni: &str, port: u16) -> Value {
    json!({"service": service, "sealed": sni, "addr": format!("0.0.0.0:{port}")})
}

/// Where clients reach a port of the hub.
pub fn at_hub(port: u16) -> SocketAddr {
    (HUB_FOR_CLIENT, port).into()
}

/// A hub with routes, and an agent with services, for one cluster.
pub struct Routed {
    pub agent: Watched,
    pub dataplane: Watched,
    pub bed: Testbed,
}

impl Routed {
    /// `services` are the agent's flags.
    pub fn start(bed: Testbed, routes: &[Value], hub: &[&str], services: &[&str]) -> Result<Self> {
        let clusters = write_routes(&bed, routes)?;
        let mut arguments = vec!["--clusters", clusters.as_str()];
        arguments.extend_from_slice(hub);
        let dataplane = dataplane(&bed, "dataplane", &arguments)?;
        let agent = agent(&bed.site, services).start(&bed)?;
        Ok(Routed {
            agent,
            dataplane,
            bed,
        })
    }

    /// A metric of the data plane, with its labels as they are printed; 0 if it is absent.
    pub fn metric(&self, name: &str) -> Result<f64> {
        metric(&self.bed.client, crate::hub::internal(), name)
    }
}

/// A testbed with nothing but hub, client and site.
pub fn bed() -> Result<Testbed> {
    Testbed::new(Layout::default())
}

/// The agent of the cluster `dev`, over plain `ws://`.
pub fn agent<'a>(at: &'a Namespace, services: &[&str]) -> Agent<'a> {
    Agent::plain(at, "agent", DEV_TOKEN, (SITE, 1).into()).with(services)
}

/// A clusters file whose cluster `dev` has `routes`.
pub fn write_routes(bed: &Testbed, routes: &[Value]) -> Result<String> {
    use std::os::unix::fs::PermissionsExt;
    let clusters = json!([{"id": "dev", "token": DEV_TOKEN, "routes": routes}]);
    let path = bed.path("clusters.json");
    std::fs::write(&path, clusters.to_string())?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(path.to_string_lossy().into_owned())
}

/// The sum of a metric's series whose line starts with `name`.
pub fn metric(from: &Namespace, admin: SocketAddr, name: &str) -> Result<f64> {
    let page = client::get(from, admin, "/metrics")?.text();
    let values = page
        .lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.sum())
}

/// Runs a client program to its end; its output, or all it said.
pub fn run(from: &Namespace, program: &str, arguments: &[&str]) -> Result<String> {
    from.output(program, arguments)
        .with_context(|| format!("{program} {}", arguments.join(" ")))
}

/// Waits until the hub accepts on `port`.
pub fn wait_listening(bed: &Testbed, port: u16) -> Result<()> {
    wait_for("the route's listener", START_MAX, || {
        bed.client.probe(at_hub(port)).then_some(())
    })
}
