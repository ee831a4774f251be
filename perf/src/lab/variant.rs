//! Everything that may stand between generator and service.

use anyhow::Result;

use super::tunnel::Noise;
use super::{Host, Lab, Running, culvert, hop, nginx, pair, person, ssh, tunnel};
use crate::relay::{Io, Mechanism};

/// A contestant or a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Nothing.
    Direct,
    /// http: nginx as a reverse proxy on both hops, in the clear.
    Nginx,
    /// http: the same with TLS between the hops.
    NginxTls,
    /// http: data plane and agent, in the clear.
    Culvert,
    /// http: the same with the data plane's session threads on epoll.
    CulvertEpoll,
    /// http: the same with TLS on the agent's leg.
    CulvertTls,
    /// http: data plane and agent for a signed-in person, in the clear.
    CulvertPerson,
    /// hop: a splice relay of 150 lines.
    Ideal,
    /// hop: one shared 64 KiB buffer on epoll.
    EpollCopy,
    /// hop: tokio's copy with its default buffers.
    Tokio8k,
    /// hop: tokio's copy with 64 KiB.
    Tokio64k,
    /// hop: Culvert's engine on io_uring.
    HopUring,
    /// hop: on epoll.
    HopEpoll,
    /// hop: on io_uring, with the spin.
    HopUringSpin,
    /// hop: on epoll, with the spin.
    HopEpollSpin,
    /// hop: HAProxy.
    Haproxy,
    /// hop: HAProxy with forced splicing.
    HaproxySplice,
    /// hop: nginx's stream module with 64 KiB.
    NginxStream,
    /// hop: socat, a process for each connection.
    Socat,
    /// tunnel: a tcp route, no TLS on the agent's leg.
    TcpPlain,
    /// tunnel: the same with the data plane's eBPF observer in tier sockops.
    TcpPlainSockops,
    /// tunnel: the same with the observer in tier skb.
    TcpPlainSkb,
    /// tunnel: a tcp route, TLS on the agent's leg.
    TcpEncrypted,
    /// tunnel: a sealed route: end-to-end TLS passes unopened.
    Sealed,
    /// tunnel: bridge and broker at a relay, whose outer TLS ends with MATCHED.
    Pair,
    /// tunnel: the same with the outer TLS kept.
    PairKeep,
    /// tunnel: the same bridge and broker, of which the broker dials the bridge by a tcp route.
    PairByTcp,
    /// tunnel: stunnel at both ends of the same end-to-end TLS, socat in the middle.
    PairStunnel,
    /// tunnel: socat at both ends and in the middle.
    PairSocat,
    /// tunnel: rathole, in the clear.
    Rathole,
    /// tunnel: rathole with noise in its default cipher.
    RatholeNoise,
    /// tunnel: rathole with noise and AES-GCM.
    RatholeNoiseAes,
    /// tunnel: OpenSSH's remote forwarding, aes128-gcm.
    SshR,
    /// tunnel: bore, in the clear.
    Bore,
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
            Variant::CulvertPerson => "culvert, as a person",
            Variant::Ideal => "ideal",
            Variant::EpollCopy => "epoll copy",
            Variant::Tokio8k => "tokio 8 KiB",
            Variant::Tokio64k => "tokio 64 KiB",
            Variant::HopUring => "culvert hop, io_uring",
            Variant::HopEpoll => "culvert hop, epoll",
            Variant::HopUringSpin => "culvert hop, io_uring, spin",
            Variant::HopEpollSpin => "culvert hop, epoll, spin",
            Variant::Haproxy => "HAProxy",
            Variant::HaproxySplice => "HAProxy splice",
            Variant::NginxStream => "nginx stream",
            Variant::Socat => "socat",
            Variant::TcpPlain => "culvert tcp, plain",
            Variant::TcpPlainSockops => "culvert tcp, plain, observer sockops",
            Variant::TcpPlainSkb => "culvert tcp, plain, observer skb",
            Variant::TcpEncrypted => "culvert tcp, encrypted",
            Variant::Sealed => "culvert sealed",
            Variant::Pair => "culvert pair",
            Variant::PairKeep => "culvert pair, outer TLS kept",
            Variant::PairByTcp => "the pair's agents by culvert tcp",
            Variant::PairStunnel => "stunnel, socat between",
            Variant::PairSocat => "socat with TLS, socat between",
            Variant::Rathole => "rathole",
            Variant::RatholeNoise => "rathole noise",
            Variant::RatholeNoiseAes => "rathole noise AES",
            Variant::SshR => "ssh -R",
            Variant::Bore => "bore",
        }
    }

    /// Whether its processes start others: their time is then counted by group.
    pub fn forks(self) -> bool {
        matches!(
            self,
            Variant::Socat | Variant::SshR | Variant::PairStunnel | Variant::PairSocat
        )
    }

    /// What keeps it from running here, if anything.
    pub fn lacks(self, lab: &Lab) -> Option<String> {
        let name = match self {
            Variant::Rathole | Variant::RatholeNoise | Variant::RatholeNoiseAes => "rathole",
            Variant::Bore => "bore",
            _ => return None,
        };
        let found = lab.rivals.path(name);
        found.err().map(|error| format!("{error:#}"))
    }

    /// Starts fresh processes in front of the service.
    ///
    /// # Errors
    /// When one does not start; the text ends with its last lines.
    pub fn start(self, lab: &Lab) -> Result<Running> {
        let service = lab.service(Host::Site);
        let tcp = |leg, observer| culvert::tcp(lab, leg, observer, lab.entry(), service);
        let engine = |io, spins| hop::reference(lab, Mechanism::Culvert, io, spins);
        match self {
            Variant::Direct => Ok(Running::default()),
            Variant::Nginx => nginx::start(lab, service, false),
            Variant::NginxTls => nginx::start(lab, service, true),
            Variant::Culvert => culvert::start(lab, service, false, "auto"),
            Variant::CulvertEpoll => culvert::start(lab, service, false, "epoll"),
            Variant::CulvertTls => culvert::start(lab, service, true, "auto"),
            Variant::CulvertPerson => person::start(lab, service),
            Variant::Ideal => hop::reference(lab, Mechanism::Ideal, Io::Auto, false),
            Variant::EpollCopy => hop::reference(lab, Mechanism::EpollCopy, Io::Auto, false),
            Variant::Tokio8k => hop::reference(lab, Mechanism::Tokio8k, Io::Auto, false),
            Variant::Tokio64k => hop::reference(lab, Mechanism::Tokio64k, Io::Auto, false),
            Variant::HopUring => engine(Io::IoUring, false),
            Variant::HopEpoll => engine(Io::Epoll, false),
            Variant::HopUringSpin => engine(Io::IoUring, true),
            Variant::HopEpollSpin => engine(Io::Epoll, true),
            Variant::Haproxy => hop::haproxy(lab, false),
            Variant::HaproxySplice => hop::haproxy(lab, true),
            Variant::NginxStream => nginx::stream(lab),
            Variant::Socat => hop::socat(lab),
            Variant::TcpPlain => tcp(culvert::Leg::Plain, None),
            Variant::TcpPlainSockops => tcp(culvert::Leg::Plain, Some("sockops")),
            Variant::TcpPlainSkb => tcp(culvert::Leg::Plain, Some("skb")),
            Variant::TcpEncrypted => tcp(culvert::Leg::Encrypted, None),
            Variant::Sealed => tcp(culvert::Leg::Sealed, None),
            Variant::Pair => pair::start(lab, pair::Outer::End),
            Variant::PairKeep => pair::start(lab, pair::Outer::Keep),
            Variant::PairByTcp => pair::by_route(lab),
            Variant::PairStunnel => pair::rival(lab, pair::Ends::Stunnel),
            Variant::PairSocat => pair::rival(lab, pair::Ends::Socat),
            Variant::Rathole => tunnel::rathole(lab, None),
            Variant::RatholeNoise => tunnel::rathole(lab, Some(Noise::Default)),
            Variant::RatholeNoiseAes => tunnel::rathole(lab, Some(Noise::Aes)),
            Variant::SshR => ssh::start(lab),
            Variant::Bore => tunnel::bore(lab),
        }
    }
}
