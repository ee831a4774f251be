//! The three bound ports.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use culvert_net::listen::{ListenOptions, Listener};
use culvert_net::tls::ServerTls;
use culvert_telemetry::admin::Admin;
use culvert_telemetry::metrics::IntGauge;

use super::{Addresses, StartError};
use crate::accept::{Port, Side};
use crate::config::Config;
use crate::lobby::{LOBBY_MAX, Lobby};

/// Descriptors kept for files, logs, control and the admin port.
const DESCRIPTORS_KEPT: u64 = 128;

/// The bound sockets.
pub struct Listeners {
    /// Agents.
    pub public: Listener,
    /// Clients.
    pub internal: Listener,
    /// Operators.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds all three.
    ///
    /// # Errors
    /// The first that cannot be bound, by address.
    pub fn bind(config: &Config) -> Result<Self, StartError> {
        let carrier = ListenOptions {
            carrier: true,
            ..ListenOptions::default()
        };
        Ok(Self {
            public: bind(config.addr, carrier)?,
            internal: bind(config.internal_addr, ListenOptions::default())?,
            admin: TcpListener::bind(config.admin_addr).map_err(|why| {
                io::Error::new(
                    why.kind(),
                    format!("cannot listen on {}: {why}", config.admin_addr),
                )
            })?,
        })
    }

    /// Where they listen.
    ///
    /// # Errors
    /// The operating system's.
    pub fn addresses(&self) -> io::Result<Addresses> {
        Ok(Addresses {
            public: self.public.local_addr()?,
            internal: self.internal.local_addr()?,
            admin: self.admin.local_addr()?,
        })
    }

    /// What the threads that accept share.
    pub fn ports(
        &self,
        tls: Option<&Arc<ServerTls>>,
        internal_plain: bool,
        admin: &Arc<Admin>,
        waiting: &IntGauge,
    ) -> [Arc<Port>; 2] {
        let lobby_max = (connections_max() / 2).min(LOBBY_MAX);
        [Side::Public, Side::Internal].map(|side| {
            Arc::new(Port {
                side,
                tls: tls
                    .filter(|_| side == Side::Public || !internal_plain)
                    .cloned(),
                lobby: Lobby::new(lobby_max, waiting.clone()),
                admin: admin.clone(),
                connections: Arc::default(),
            })
        })
    }
}

/// Connections that one listener may have: a half of the descriptors.
pub fn connections_max() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = descriptors
        .unwrap_or(u64::MAX)
        .saturating_sub(DESCRIPTORS_KEPT)
        / 2;
    usize::try_from(share).unwrap_or(usize::MAX).max(16)
}

/// All addresses of both families where the host has both, else of the one it has.
fn bind(addr: SocketAddr, options: ListenOptions) -> io::Result<Listener> {
    match Listener::bind(addr, options) {
        Err(_) if addr.is_ipv6() && addr.ip().is_unspecified() && !has_ipv6() => {
            Listener::bind((Ipv4Addr::UNSPECIFIED, addr.port()).into(), options)
        }
        bound => bound,
    }
}

fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}
