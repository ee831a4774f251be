//! The three bound ports.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use culvert_net::listen::{ListenOptions, Listener};
use culvert_net::tls::ServerTls;
use culvert_observe::{Leg, Observer};
use culvert_telemetry::admin::Admin;
use culvert_telemetry::metrics::IntGauge;

use super::Addresses;
use crate::accept::{Port, Side};
use crate::config::Config;
use crate::launch::{StartError, bind, bind_admin, connections_max};
use crate::lobby::{LOBBY_MAX, Lobby};

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
    /// Binds all three. What they accept is the observer's from its handshake on.
    ///
    /// # Errors
    /// The first that cannot be bound, by address.
    pub fn bind(config: &Config, observer: &Observer) -> Result<Self, StartError> {
        let carrier = ListenOptions {
            carrier: true,
            ..ListenOptions::default()
        };
        Ok(Self {
            public: bind(config.addr, carrier, |socket| {
                observer.listener(socket, Leg::Other);
            })?,
            internal: bind(config.internal_addr, ListenOptions::default(), |socket| {
                observer.listener(socket, Leg::Client);
            })?,
            admin: bind_admin(config.admin_addr)?,
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
