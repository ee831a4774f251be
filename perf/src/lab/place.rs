//! Where the parts stand: one namespace, three joined by links without offloads, or two with a
//! long path between them.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};

use super::{LOCAL, SETTINGS, congestion};
use crate::delay::{Delayer, Path};
use crate::testbed::{Namespace, solitary};

/// Who stands somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// The generator's clients.
    Client,
    /// The one relay of a hop, or the hub of a tunnel.
    Hub,
    /// The service, and the agent of a tunnel.
    Site,
}

/// How they are joined.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    /// All on one loopback.
    #[default]
    Lo,
    /// Three namespaces, MTU 1500, no segmentation, checksum or receive offload.
    Veth1500,
    /// Client and hub on one loopback; a packet-level path with delay, rate and loss to the site.
    Wan(Path),
}

impl Topology {
    /// Its name in files.
    pub fn name(&self) -> String {
        match self {
            Topology::Lo => "lo".to_owned(),
            Topology::Veth1500 => "veth1500".to_owned(),
            Topology::Wan(path) => path.name(),
        }
    }
}

/// Namespaces and what joins them.
pub(super) struct Place {
    topology: Topology,
    /// One, two (hub, site) or three (hub, site, client).
    namespaces: Vec<Namespace>,
    pub delayer: Option<Delayer>,
}

impl Place {
    pub fn new(topology: Topology) -> Result<Place> {
        let names: &[&str] = match topology {
            Topology::Lo => &["lab"],
            Topology::Wan(_) => &["hub", "site"],
            Topology::Veth1500 => &["hub", "site", "client"],
        };
        let namespaces = names
            .iter()
            .map(|name| solitary(name))
            .collect::<Result<Vec<_>>>()?;
        for namespace in &namespaces {
            for setting in SETTINGS {
                namespace.output("sysctl", &["-q", "-w", setting])?;
            }
            congestion::set(namespace)?;
        }
        let mut delayer = None;
        match topology {
            Topology::Lo => {}
            Topology::Veth1500 => {
                let [hub, site, client] = &namespaces[..] else {
                    unreachable!("made above")
                };
                client.join(hub, 1)?;
                site.join(hub, 2)?;
                client.join(site, 6)?;
                for (namespace, link) in [
                    (client, "v1"),
                    (hub, "w1"),
                    (site, "v2"),
                    (hub, "w2"),
                    (client, "v6"),
                    (site, "w6"),
                ] {
                    without_offloads(namespace, link)?;
                }
            }
            Topology::Wan(path) => {
                for namespace in &namespaces {
                    for setting in WINDOWS {
                        namespace.output("sysctl", &["-q", "-w", setting])?;
                    }
                }
                delayer = Some(Delayer::start(&namespaces[0], &namespaces[1], path)?);
            }
        }
        Ok(Place {
            topology,
            namespaces,
            delayer,
        })
    }

    pub fn at(&self, host: Host) -> &Namespace {
        let place = match (self.topology, host) {
            (Topology::Lo, _) | (_, Host::Hub) | (Topology::Wan(_), Host::Client) => 0,
            (_, Host::Site) => 1,
            (Topology::Veth1500, Host::Client) => 2,
        };
        &self.namespaces[place]
    }

    /// The address of `host` as `from` sees it.
    pub fn address(&self, host: Host, from: Host) -> IpAddr {
        if std::ptr::eq(self.at(host), self.at(from)) {
            return LOCAL;
        }
        let part = |net, last| IpAddr::V4(Ipv4Addr::new(10, 77, net, last));
        match (self.topology, host, from) {
            (Topology::Lo, ..) => LOCAL,
            (Topology::Wan(_), Host::Site, _) => part(8, 2),
            (Topology::Wan(_), ..) => part(8, 1),
            (Topology::Veth1500, Host::Hub, Host::Client) => part(1, 1),
            (Topology::Veth1500, Host::Client, Host::Hub) => part(1, 2),
            (Topology::Veth1500, Host::Hub, _) => part(2, 1),
            (Topology::Veth1500, Host::Site, Host::Hub) => part(2, 2),
            (Topology::Veth1500, Host::Site, _) => part(6, 1),
            (Topology::Veth1500, Host::Client, _) => part(6, 2),
        }
    }
}

/// What a long path needs so that the kernel does not limit it.
const WINDOWS: &[&str] = &[
    "net.ipv4.tcp_rmem=4096 131072 67108864",
    "net.ipv4.tcp_wmem=4096 65536 67108864",
];

fn without_offloads(namespace: &Namespace, link: &str) -> Result<()> {
    let off = [
        "-K", link, "tso", "off", "gso", "off", "gro", "off", "tx", "off", "rx", "off",
    ];
    namespace
        .output("ethtool", &off)
        .with_context(|| format!("offloads of {link}"))?;
    namespace
        .output("ip", &["link", "set", link, "mtu", "1500"])
        .map(drop)
}
