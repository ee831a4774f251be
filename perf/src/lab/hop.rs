//! One-hop relays: our references, HAProxy and socat.

use std::net::SocketAddr;

use anyhow::Result;
use clap::ValueEnum as _;

use super::{ENTRY_PORT, Host, Lab, RELAY_CPU, Running, START_MAX};
use crate::relay::{Io, Mechanism};
use crate::testbed::{Cgroup, Spawn};

/// Starts the one process of a hop and waits until it accepts.
pub(super) fn start(lab: &Lab, name: &str, spawn: Spawn) -> Result<Running> {
    lab.await_free_entry()?;
    let group = Cgroup::new()?;
    let mut process = spawn.cpu(RELAY_CPU).counted_by(group.as_ref()).start_in(
        lab.directory(),
        lab.at(Host::Hub),
        name,
    )?;
    process.wait_port(lab.at(Host::Client), lab.entry(), START_MAX)?;
    Ok(Running {
        entry: Some(lab.entry()),
        hub: vec![process],
        groups: [group, None],
        ..Running::default()
    })
}

/// Where a hop listens: everywhere in its namespace.
pub(super) fn listen() -> SocketAddr {
    ([0, 0, 0, 0], ENTRY_PORT).into()
}

/// A relay of ours that is a subcommand.
pub(super) fn reference(lab: &Lab, mechanism: Mechanism, io: Io, spins: bool) -> Result<Running> {
    let word = |value: Option<clap::builder::PossibleValue>| {
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    };
    let mut spawn = Spawn::new(lab.binaries.join("culvert-perf"))
        .args(["relay", &word(mechanism.to_possible_value())])
        .args(["--listen", &listen().to_string()])
        .args(["--to", &lab.service(Host::Hub).to_string()])
        .args(["--io-engine", &word(io.to_possible_value())])
        .env("TOKIO_WORKER_THREADS", "1");
    if spins {
        spawn = spawn.args(["--spin"]);
    }
    start(lab, "relay", spawn)
}

pub(super) fn haproxy(lab: &Lab, splices: bool) -> Result<Running> {
    let splice = if splices {
        "option splice-request\n  option splice-response\n"
    } else {
        ""
    };
    let config = lab.path("haproxy.cfg");
    std::fs::write(
        &config,
        format!(
            "global
  nbthread 1
  cpu-map auto:1/1 {RELAY_CPU}
  maxconn 9500
  maxpipes 400
defaults
  mode tcp
  maxconn 9500
  backlog 4096
  timeout connect 10s
  timeout client 1h
  timeout server 1h
  {splice}
listen entry
  bind {listen}
  server service {service}
",
            listen = listen(),
            service = lab.service(Host::Hub),
        ),
    )?;
    let spawn = Spawn::new("haproxy").args(["-db", "-f", &config.to_string_lossy()]);
    start(lab, "haproxy", spawn)
}

/// Its default is to end half a second after one direction ends; that would fail every half-close.
pub(super) fn socat(lab: &Lab) -> Result<Running> {
    let listen = format!("TCP4-LISTEN:{ENTRY_PORT},fork,reuseaddr,nodelay,backlog=4096");
    let service = format!("TCP4:{},nodelay", lab.service(Host::Hub));
    let spawn = Spawn::new("socat").args(["-b65536", "-t", "3600", &listen, &service]);
    start(lab, "socat", spawn)
}
