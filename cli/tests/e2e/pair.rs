//! Pair mode: a bridge on the private site and a broker at the client, which dial nobody but a
//! relay; the relay's host routes nothing else.

mod blind;
mod bytes;
mod drain;
pub mod echo;
mod etcd;
mod first_byte;
mod idle;
mod kills;
mod postgres;
mod relays;
mod ssh;
mod unit;
mod walk;
mod web;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use culvert_perf::testbed::{
    HUB_FOR_CLIENT, HUB_FOR_SITE, Layout, Namespace, Spawn, Testbed, wait_for,
};

use crate::client;
use crate::hub::{START_MAX, binary};
use crate::mtls::{Authority, hub_names};
use crate::watched::Watched;

/// Where relays listen.
pub const RELAY: u16 = 443;
/// Where the broker's clients connect, on the client's own host.
pub const BROKER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8199);
/// Probes and metrics of bridge and broker, each on its own host.
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);

/// The files of both sides and of the relay.
pub struct Files {
    /// `ca.crt`, `bridge.crt`, `bridge.key`, `broker.crt`, `broker.key`.
    pub pair: PathBuf,
    /// Whom to trust at the relay.
    pub relay_ca: String,
    relay_cert: String,
    relay_key: String,
}

impl Files {
    /// The pair's as `culvert pair connect` makes them, the relay's from an authority of its own.
    pub fn make(bed: &Testbed) -> Result<Files> {
        let store = bed.path("pair");
        let store_flag = format!("file:{}", store.display());
        let culvert = binary("culvert")?.to_string_lossy().into_owned();
        let relay = format!("{HUB_FOR_SITE}:{RELAY}");
        let made = ["pair", "connect", "--name", "e2e", "--relay", &relay];
        bed.hub
            .output(&culvert, &[&made[..], &["--store", &store_flag]].concat())?;
        let pair = std::fs::read_dir(&store)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.join("ca.crt").exists())
            .context("certificates of the pair")?;
        let authority = Authority::new()?;
        let relay_ca = authority.write(&bed.path("relay-ca.pem"))?;
        let (relay_cert, relay_key) = authority.issue(&hub_names(), false, &bed.path("relay"))?;
        Ok(Files {
            pair,
            relay_ca,
            relay_cert,
            relay_key,
        })
    }

    /// A file of the pair.
    pub fn of(&self, name: &str) -> String {
        self.pair.join(name).to_string_lossy().into_owned()
    }

    /// A relay on its usual port.
    pub fn relay(&self, bed: &Testbed, name: &str, arguments: &[&str]) -> Result<Watched> {
        let program = Spawn::new(binary("culvert-dataplane")?);
        self.started(self.with_certificate(program).args(arguments), bed, name)
    }

    /// A relay that `entrance` becomes in the end; its last argument is the program.
    pub fn relay_from(&self, entrance: Spawn, arguments: &[&str]) -> Result<Spawn> {
        let program = binary("culvert-dataplane")?;
        Ok(self
            .with_certificate(entrance.args([program]))
            .args(arguments))
    }

    fn with_certificate(&self, program: Spawn) -> Spawn {
        program
            .args(["relay", "--tls-cert", &self.relay_cert])
            .args(["--tls-key", &self.relay_key])
    }

    /// Starts a relay on its usual port.
    pub fn started(&self, spawn: Spawn, bed: &Testbed, name: &str) -> Result<Watched> {
        let mut relay = Watched::start(spawn, bed, &bed.hub, name)?;
        relay.wait_port(&bed.client, (HUB_FOR_CLIENT, RELAY).into(), START_MAX)?;
        Ok(relay)
    }

    /// A bridge to `to`, not waited for.
    pub fn bridge(&self, bed: &Testbed, to: SocketAddr, arguments: &[&str]) -> Result<Watched> {
        let spawn = self
            .side("bridge", HUB_FOR_SITE)?
            .args(["--to", &to.to_string()])
            .args(arguments);
        Watched::start(spawn, bed, &bed.site, "bridge")
    }

    /// A broker at [`BROKER`], not waited for.
    pub fn broker(&self, bed: &Testbed, arguments: &[&str]) -> Result<Watched> {
        let spawn = self.side("broker", HUB_FOR_CLIENT)?.args(arguments);
        Watched::start(spawn, bed, &bed.client, "broker")
    }

    fn side(&self, role: &str, relay: IpAddr) -> Result<Spawn> {
        Ok(self
            .certified(role)?
            .args(["--relay", &format!("{relay}:{RELAY}")])
            .args(["--relay-ca", &self.relay_ca]))
    }

    /// A side with its certificate, not told yet how it meets the other.
    fn certified(&self, role: &str) -> Result<Spawn> {
        Ok(Spawn::new(binary("culvert-agent")?)
            .args([role, "--tls-ca", &self.of("ca.crt")])
            .args(["--tls-cert", &self.of(&format!("{role}.crt"))])
            .args(["--tls-key", &self.of(&format!("{role}.key"))]))
    }
}

/// All three, and a pair that stands.
pub struct Paired {
    pub broker: Watched,
    pub bridge: Watched,
    pub relay: Watched,
    pub files: Files,
    pub bed: Testbed,
}

impl Paired {
    /// A bridge to `to`; `arguments` are of relay, bridge and broker.
    pub fn start(bed: Testbed, to: SocketAddr, arguments: [&[&str]; 3]) -> Result<Paired> {
        let files = Files::make(&bed)?;
        let [of_relay, of_bridge, of_broker] = arguments;
        let relay = files.relay(&bed, "relay", of_relay)?;
        let mut bridge = files.bridge(&bed, to, of_bridge)?;
        wait_ready(&mut bridge, &bed.site)?;
        let mut broker = files.broker(&bed, of_broker)?;
        wait_ready(&mut broker, &bed.client)?;
        Ok(Paired {
            broker,
            bridge,
            relay,
            files,
            bed,
        })
    }

    /// A metric of the relay; 0 if it is absent.
    pub fn relay_metric(&self, name: &str) -> Result<f64> {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 9901));
        crate::routed::metric(&self.bed.hub, admin, name)
    }

    /// Waits until the relay has counted `bytes`; how many of its bytes no copy touched.
    pub fn spliced_of(&self, bytes: u64) -> Result<f64> {
        // A relay's engine tells its figures now and then.
        wait_for("the relay's figures", START_MAX, || {
            let counted = self.relay_metric("culvert_engine_bytes_total").ok()?;
            (counted >= bytes as f64).then_some(())
        })?;
        self.relay_metric("culvert_engine_spliced_bytes_total")
    }
}

/// Waits until a bridge waits somewhere, or a broker has its pair.
pub fn wait_ready(process: &mut Watched, at: &Namespace) -> Result<()> {
    process.wait_until("ready (/readyz)", START_MAX, |_| {
        let answer = client::get(at, HEALTH, "/readyz").ok()?;
        (answer.status == 200).then_some(())
    })
}

/// A testbed whose hub leads no packet from one host to another.
pub fn bed() -> Result<Testbed> {
    let bed = Testbed::new(Layout::default())?;
    let forwards = bed.hub.output("sysctl", &["-n", "net.ipv4.ip_forward"])?;
    ensure!(
        forwards.trim() == "0",
        "the relay's host routes: {forwards}"
    );
    Ok(bed)
}
