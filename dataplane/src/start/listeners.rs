//! The bound ports.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use culvert_net::listen::{ListenOptions, Listener};
use culvert_net::tls::{AgentsTls, ServerTls};
use culvert_observe::{Leg, Observer};
use culvert_telemetry::admin::Admin;
use culvert_telemetry::metrics::IntGauge;

use super::Addresses;
use crate::accept::{Port, PortTls, Side};
use crate::config::Config;
use crate::launch::{StartError, bind, bind_admin, connections_max};
use crate::lobby::{LOBBY_MAX, Lobby};

/// TLS of the listeners; none where they speak plain HTTP.
#[derive(Clone, Default)]
pub struct Certificates {
    /// With client certificates, where they are required.
    pub all: Option<Arc<ServerTls>>,
    /// Without: of people's own listener.
    pub people: Option<Arc<ServerTls>>,
}

/// The bound sockets.
pub struct Listeners {
    /// Agents.
    pub public: Listener,
    /// Clients.
    pub internal: Listener,
    /// People, where they have their own.
    pub people: Option<Listener>,
    /// Agents that show certificates.
    pub certified: Option<Listener>,
    /// Operators.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds them all. What they accept is the observer's from its handshake on.
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
            people: match config.user_addr {
                Some(addr) => Some(bind(addr, ListenOptions::default(), |socket| {
                    observer.listener(socket, Leg::Client);
                })?),
                None => None,
            },
            certified: match config.agent_mtls_addr {
                Some(addr) => Some(bind(addr, carrier, |socket| {
                    observer.listener(socket, Leg::Other);
                })?),
                None => None,
            },
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
            people: match &self.people {
                Some(people) => Some(people.local_addr()?),
                None => None,
            },
            certified: match &self.certified {
                Some(certified) => Some(certified.local_addr()?),
                None => None,
            },
            admin: self.admin.local_addr()?,
        })
    }

    /// What the threads that accept share.
    pub fn ports(
        &self,
        certificates: &Certificates,
        agents: Option<&Arc<AgentsTls>>,
        internal_plain: bool,
        admin: &Arc<Admin>,
        waiting: &IntGauge,
    ) -> Vec<(Arc<Port>, &Listener)> {
        let lobby_max = (connections_max() / 2).min(LOBBY_MAX);
        let people = self.people.iter().map(|people| (Side::People, people));
        let all = [
            (Side::Public, &self.public),
            (Side::Internal, &self.internal),
        ];
        let certified = self.certified.iter().map(|it| (Side::Certified, it));
        let all = all.into_iter().chain(people).chain(certified);
        let all = all.map(|(side, listener)| {
            let files = |tls: &Option<Arc<ServerTls>>| tls.clone().map(PortTls::Files);
            let tls = match side {
                Side::Internal if internal_plain => None,
                Side::Public | Side::Internal => files(&certificates.all),
                Side::People => files(&certificates.people),
                Side::Certified => agents.cloned().map(PortTls::Agents),
            };
            let port = Port {
                side,
                tls,
                lobby: Lobby::new(lobby_max, waiting.clone()),
                admin: admin.clone(),
                connections: Arc::default(),
            };
            (Arc::new(port), listener)
        });
        all.collect()
    }
}
