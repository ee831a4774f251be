//! Two agents that meet at a relay; the relay is the hub that is counted. Beside them what others have
//! for it: the same end-to-end TLS made by stunnel or socat, with a socat in the middle. That cannot
//! let two sides meet that only dial out, so it dials the site; the bytes go the same way.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::culvert::{self, Leg};
use super::{ENTRY_PORT, Host, LOCAL, Lab, RELAY_CPU, Running, START_MAX, get};
use crate::testbed::{Cgroup, Process, Spawn};

const RELAY_PORT: u16 = 9201;
const BRIDGE_HEALTH: u16 = 9208;
const BROKER_HEALTH: u16 = 9204;
const RELAY_ADMIN: u16 = 9205;
/// Where the far end of a rival, or a bridge that is dialled, listens.
const SITE_PORT: u16 = 9206;
/// Where a tcp route takes the broker in.
const ROUTE_PORT: u16 = 9207;

/// What becomes of the outer TLS when a pair is matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outer {
    /// It ends, and two plain sockets are spliced.
    End,
    /// It stays, and everything is copied through it.
    Keep,
}

impl Outer {
    fn word(self) -> &'static str {
        match self {
            Outer::End => "end",
            Outer::Keep => "keep",
        }
    }
}

/// Relay, bridge and broker; each connection has a pair of its own.
pub(super) fn start(lab: &Lab, outer: Outer) -> Result<Running> {
    lab.await_free_entry()?;
    let groups = [Cgroup::new()?, Cgroup::new()?];
    let relay = relay(lab, outer, groups[0].as_ref())?;
    let at = |host| format!("{}:{RELAY_PORT}", lab.address(Host::Hub, host));
    let meet = |relay: String| {
        let ca = lab.text("cert.pem");
        [
            "--outer-tls",
            outer.word(),
            "--relay-ca",
            &ca,
            "--relay",
            &relay,
        ]
        .map(str::to_owned)
    };
    let agent = agents(
        lab,
        &meet(at(Host::Site)),
        &meet(at(Host::Client)),
        groups[1].as_ref(),
    )?;
    Ok(Running {
        entry: Some(SocketAddr::from((LOCAL, ENTRY_PORT))),
        hub: vec![relay],
        agent,
        groups,
        ..Running::default()
    })
}

/// The same two agents, of which the broker dials the bridge through a tcp route: what the engine's
/// own `tcp` spends on the bytes that it gets from them.
pub(super) fn by_route(lab: &Lab) -> Result<Running> {
    let site = SocketAddr::from((lab.address(Host::Site, Host::Site), SITE_PORT));
    let listen = SocketAddr::from((lab.address(Host::Hub, Host::Client), ROUTE_PORT));
    let mut running = culvert::tcp(lab, Leg::Plain, None, listen, site)?;
    let agents = agents(
        lab,
        &["--mode", "direct", "--listen-pair", &site.to_string()].map(str::to_owned),
        &["--mode", "direct", "--dial", &listen.to_string()].map(str::to_owned),
        running.groups[1].as_ref(),
    )?;
    running.agent.extend(agents);
    running.entry = Some(SocketAddr::from((LOCAL, ENTRY_PORT)));
    Ok(running)
}

/// A bridge and a broker that meet as `bridge_meets` and `broker_meets` say.
fn agents(
    lab: &Lab,
    bridge_meets: &[String],
    broker_meets: &[String],
    group: Option<&Cgroup>,
) -> Result<Vec<Process>> {
    let files = certificates(lab)?;
    let side = |role: &str, health: u16| {
        let file = |what: &str| files.join(what).to_string_lossy().into_owned();
        Spawn::new(lab.binaries.join("culvert-agent"))
            .args([role, "--log-level", "warn", "--tls-ca", &file("ca.crt")])
            .args(["--tls-cert", &file(&format!("{role}.crt"))])
            .args(["--tls-key", &file(&format!("{role}.key"))])
            .args(["--health-addr", &format!("{LOCAL}:{health}")])
            .env("TOKIO_WORKER_THREADS", "1")
            .counted_by(group)
            .cpu(RELAY_CPU)
    };
    let bridge = side("bridge", BRIDGE_HEALTH)
        .args(["--to", &lab.service(Host::Site).to_string()])
        .args(["--allow-address", "127.0.0.0/8"])
        .args(bridge_meets);
    let broker = side("broker", BROKER_HEALTH)
        .args([
            "--listen",
            &format!("{LOCAL}:{ENTRY_PORT}"),
            "--flow-per-pair",
        ])
        .args(broker_meets);
    Ok(vec![
        ready(lab, bridge, Host::Site, ("bridge", BRIDGE_HEALTH))?,
        ready(lab, broker, Host::Client, ("broker", BROKER_HEALTH))?,
    ])
}

/// What makes the end-to-end TLS of a rival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// A thread for each connection.
    Stunnel,
    /// A process for each connection.
    Socat,
}

/// TLS 1.3 from end to end, certificates on both sides, and socat between.
pub(super) fn rival(lab: &Lab, ends: Ends) -> Result<Running> {
    let files = certificates(lab)?;
    lab.await_free_entry()?;
    let groups = [Cgroup::new()?, Cgroup::new()?];
    let entry = SocketAddr::from((LOCAL, ENTRY_PORT));
    let far = SocketAddr::from((lab.address(Host::Site, Host::Hub), SITE_PORT));
    let middle = SocketAddr::from((lab.address(Host::Hub, Host::Client), RELAY_PORT));
    let service = lab.service(Host::Site);
    let end = |role: &str, at: SocketAddr, to: SocketAddr| {
        let file = |what: &str| files.join(what).to_string_lossy().into_owned();
        let keys = [&format!("{role}.crt"), &format!("{role}.key"), "ca.crt"].map(file);
        let spawn = match ends {
            Ends::Stunnel => stunnel(lab, role, at, to, &keys)?,
            Ends::Socat => socat_tls(role, at, to, &keys),
        };
        anyhow::Ok(spawn.counted_by(groups[1].as_ref()).cpu(RELAY_CPU))
    };
    let directory = lab.directory();
    let mut bridge =
        end("bridge", far, service)?.start_in(directory, lab.at(Host::Site), "bridge")?;
    bridge.wait_port(lab.at(Host::Hub), far, START_MAX)?;
    let listen = format!("TCP4-LISTEN:{RELAY_PORT},fork,reuseaddr,nodelay,backlog=4096");
    let mut relay = Spawn::new("socat")
        .args([
            "-b65536",
            "-t",
            "3600",
            &listen,
            &format!("TCP4:{far},nodelay"),
        ])
        .counted_by(groups[0].as_ref())
        .cpu(RELAY_CPU)
        .start_in(directory, lab.at(Host::Hub), "relay")?;
    relay.wait_port(lab.at(Host::Client), middle, START_MAX)?;
    let mut broker =
        end("broker", entry, middle)?.start_in(directory, lab.at(Host::Client), "broker")?;
    broker.wait_port(lab.at(Host::Client), entry, START_MAX)?;
    Ok(Running {
        entry: Some(entry),
        hub: vec![relay],
        agent: vec![bridge, broker],
        groups,
        ..Running::default()
    })
}

fn stunnel(
    lab: &Lab,
    role: &str,
    at: SocketAddr,
    to: SocketAddr,
    [cert, key, ca]: &[String; 3],
) -> Result<Spawn> {
    let is_client = if role == "broker" { "yes" } else { "no" };
    let config = lab.path(&format!("stunnel-{role}.conf"));
    std::fs::write(
        &config,
        format!(
            "foreground = yes
pid =
debug = err
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[{role}]
client = {is_client}
accept = {at}
connect = {to}
sslVersion = TLSv1.3
cert = {cert}
key = {key}
CAfile = {ca}
verifyChain = yes
"
        ),
    )?;
    Ok(Spawn::new("stunnel").args([config]))
}

fn socat_tls(role: &str, at: SocketAddr, to: SocketAddr, [cert, key, ca]: &[String; 3]) -> Spawn {
    let tls = format!(
        "nodelay,cert={cert},key={key},cafile={ca},verify=1,openssl-min-proto-version=TLS1.3"
    );
    let listen = format!("{},fork,reuseaddr,backlog=4096", at.port());
    let (from, to) = if role == "broker" {
        // The certificates of a pair have no names.
        let to = format!("OPENSSL:{to},{tls},commonname=,no-sni");
        (format!("TCP4-LISTEN:{listen},nodelay"), to)
    } else {
        let to = format!("TCP4:{to},nodelay");
        (format!("OPENSSL-LISTEN:{listen},{tls}"), to)
    };
    Spawn::new("socat").args(["-b65536", "-t", "3600", &from, &to])
}

/// The pair's certificates, as `culvert pair connect` makes them.
fn certificates(lab: &Lab) -> Result<PathBuf> {
    let store = lab.path("pair");
    let made = Command::new(lab.binaries.join("culvert"))
        .args([
            "pair",
            "connect",
            "--name",
            "lab",
            "--relay",
            "localhost:443",
        ])
        .args(["--store", &format!("file:{}", store.display())])
        .output()
        .context("running culvert pair connect")?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "culvert pair connect: {said}");
    let made = std::fs::read_dir(&store)?.filter_map(Result::ok);
    made.map(|entry| entry.path())
        .filter(|path| path.join("ca.crt").exists())
        .max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok())
        .context("culvert pair connect made no certificates")
}

fn relay(lab: &Lab, outer: Outer, group: Option<&Cgroup>) -> Result<Process> {
    let spawn = Spawn::new(lab.binaries.join("culvert-dataplane"))
        .args(["relay", "--addr", &format!("0.0.0.0:{RELAY_PORT}")])
        .args(["--admin-addr", &format!("{LOCAL}:{RELAY_ADMIN}")])
        .args(["--tls-cert", &lab.text("cert.pem")])
        .args([
            "--tls-key",
            &lab.text("key.pem"),
            "--outer-tls",
            outer.word(),
        ])
        .args(["--connections-per-minute", "1000", "--log-level", "warn"])
        .args(["--threads", "1", "--engine-threads", "1"])
        .counted_by(group)
        .cpu(RELAY_CPU);
    let mut relay = spawn.start_in(lab.directory(), lab.at(Host::Hub), "relay")?;
    let public = (lab.address(Host::Hub, Host::Site), RELAY_PORT).into();
    relay.wait_port(lab.at(Host::Site), public, START_MAX)?;
    Ok(relay)
}

fn ready(lab: &Lab, spawn: Spawn, host: Host, (name, health): (&str, u16)) -> Result<Process> {
    let at = lab.at(host);
    let mut process = spawn.start_in(lab.directory(), at, name)?;
    process.wait_until("ready (/readyz)", START_MAX, |_| {
        get(at, SocketAddr::from((LOCAL, health)), "/readyz")
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
            .then_some(())
    })?;
    Ok(process)
}
