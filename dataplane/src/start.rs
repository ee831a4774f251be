//! From a configuration to running threads.

mod listeners;
mod main_thread;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

use culvert_engine::Backend;
use culvert_net::listen::Listener;
use culvert_net::tls::{ClientAuth, MinVersion, ServerTls, ServerTlsOptions};
use culvert_observe::{Observer, Reason};
use culvert_proto::channel::ALPN;
use culvert_telemetry::lifecycle::{EXIT_FAILURE, Shutdown};
use tokio::sync::mpsc;

use crate::accept::{Port, accept};
use crate::admin;
use crate::audit;
use crate::clusters::{self, Clusters};
use crate::config::{Config, StateSource, Tls};
use crate::engine;
use crate::launch::{Process, StartError, Started, connections_max, spawn};
use crate::metrics::Metrics;
use crate::observe;
use crate::plane::Plane;
use crate::routes::{self, follow::Handed};
use crate::runtime;
use listeners::{Certificates, Listeners};
use main_thread::Main;

/// Where a data plane listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Agents.
    pub public: SocketAddr,
    /// Clients.
    pub internal: SocketAddr,
    /// People, where they have their own.
    pub people: Option<SocketAddr>,
    /// Agents that show certificates.
    pub certified: Option<SocketAddr>,
    /// Operators.
    pub admin: SocketAddr,
}

/// A running data plane.
pub struct Dataplane {
    addresses: Addresses,
    plane: Arc<Plane>,
    threads: Vec<JoinHandle<()>>,
    /// Ends after all others: it writes what they recorded last.
    spool: Option<JoinHandle<()>>,
}

/// Runs a data plane until a signal ends it.
pub fn run(config: Config) -> ExitCode {
    let process = Process {
        log_level: &config.log_level,
        log_format: config.log_format,
        debuggable: config.debuggable,
    };
    let started = process
        .prepare()
        .and_then(|()| observe::start(&config))
        .and_then(|observer| Dataplane::start_with(config, observer, true));
    match started {
        Ok(dataplane) => {
            dataplane.join();
            ExitCode::SUCCESS
        }
        Err(why) => {
            tracing::error!(%why, "the data plane does not start");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

impl Dataplane {
    /// Starts without signal handlers: ended by [`shutdown`](Self::shutdown).
    /// Without an observer in the kernel, which belongs to a process that has no
    /// other thread yet.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, Observer::absent(Reason::Disabled), false)
    }

    fn start_with(config: Config, observer: Observer, signals: bool) -> Result<Self, StartError> {
        let backend = runtime::probe(config.io_engine)?;
        let certificates = load_certificates(&config)?;
        let file = read_clusters(&config)?;
        let threads = config.threads.unwrap_or_else(runtime::cpus_allowed);
        let (engine, engine_backend) = engine::start(config.engine, config.io_engine, threads)?;
        let listeners = Listeners::bind(&config, &observer)?;
        let addresses = listeners.addresses()?;
        let plane = Plane::new(config, engine, observer, connections_max());
        let Metrics { sight, labels, .. } = &*plane.metrics;
        // It ends with the data plane.
        drop(observe::ends::start(sight, labels, plane.config.flowlog)?);
        announce(&plane, backend, threads, addresses, file.as_ref());
        plane.metrics.runs_on(engine_backend);
        let admin = admin::routes(&plane);
        let ports = listeners.ports(
            &certificates,
            plane.certified.tls.as_ref(),
            plane.config.internal_plain,
            &admin,
            &plane.metrics.handshakes_waiting,
        );
        let main = Main {
            plane: plane.clone(),
            backend,
            admin,
            certificates,
            file,
            signals,
        };
        // Before anybody hands out listeners of routes.
        let routed: Vec<_> = (0..threads).map(|_| plane.route_threads.join()).collect();
        let spool = audit::start(&plane.audit, backend)?;
        // First: whoever is accepted finds the first state in use.
        let operators = listeners.admin.try_clone()?;
        let mut running = vec![spawn("main", backend, move |started| {
            main.run(operators, started)
        })?];
        for (number, routed) in routed.into_iter().enumerate() {
            let own = ports
                .iter()
                .map(|(port, listener)| Ok((port.clone(), listener.try_clone()?)));
            let own = own.collect::<std::io::Result<Vec<_>>>()?;
            let plane = plane.clone();
            let name = format!("session-{number}");
            running.push(spawn(&name, backend, move |started| {
                session_thread(plane, own, routed, started)
            })?);
        }
        plane.set_listening();
        Ok(Self {
            addresses,
            plane,
            threads: running,
            spool,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Drains it, or stops it.
    pub fn shutdown(&self) -> &Shutdown {
        &self.plane.shutdown
    }

    /// Waits for its end.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread panicked");
            }
        }
        self.plane.audit.close();
        if self.spool.is_some_and(|spool| spool.join().is_err()) {
            tracing::error!("the writer of the audit spool panicked");
        }
    }
}

async fn session_thread(
    plane: Arc<Plane>,
    ports: Vec<(Arc<Port>, Listener)>,
    routed: mpsc::UnboundedReceiver<Handed>,
    started: Started,
) -> Result<(), StartError> {
    tokio::spawn(routes::serve::run(plane.clone(), routed));
    for (port, listener) in ports {
        let accepting = accept(plane.clone(), port, listener);
        tokio::spawn(async move {
            if let Err(why) = accepting.await {
                tracing::error!(%why, "a thread cannot accept");
            }
        });
    }
    let _ = started.send(Ok(()));
    tokio::select! {
        () = plane.beat() => {}
        () = plane.exiting() => {}
    }
    Ok(())
}

fn load_certificates(config: &Config) -> Result<Certificates, StartError> {
    let Some(tls) = &config.tls else {
        return Ok(Certificates::default());
    };
    let agents = vec![b"h2".to_vec(), b"http/1.1".to_vec(), ALPN.to_vec()];
    let people = match config.user_addr {
        Some(_) => Some(load_tls(tls, false, agents[..2].to_vec())?),
        None => None,
    };
    Ok(Certificates {
        all: Some(load_tls(tls, true, agents)?),
        people,
    })
}

fn load_tls(
    tls: &Tls,
    asks_clients: bool,
    alpn: Vec<Vec<u8>>,
) -> Result<Arc<ServerTls>, StartError> {
    let client_ca = tls.client_ca.clone().filter(|_| asks_clients);
    let options = ServerTlsOptions {
        cert: tls.cert.clone(),
        key: tls.key.clone(),
        client_auth: client_ca.map(|ca| ClientAuth {
            ca,
            required: true,
            rsa: true,
        }),
        alpn,
        min_version: MinVersion::Tls12,
    };
    let loaded = ServerTls::load(options).map_err(|why| StartError::Config(why.to_string()))?;
    Ok(Arc::new(loaded))
}

fn read_clusters(config: &Config) -> Result<Option<Clusters>, StartError> {
    let tls = config.tls.is_some();
    let read = match &config.state {
        StateSource::Control(_) => return Ok(None),
        StateSource::ClustersFile(path) => clusters::read(path, tls),
        StateSource::ClustersText(text) => clusters::parse(&text.0, tls),
    };
    read.map(Some)
        .map_err(|why| StartError::Config(why.to_string()))
}

fn announce(
    plane: &Plane,
    backend: Backend,
    threads: usize,
    addresses: Addresses,
    file: Option<&Clusters>,
) {
    plane.metrics.runs_on(backend);
    let Addresses {
        public,
        internal,
        people,
        certified,
        admin,
    } = addresses;
    tracing::info!(
        %public, %internal, %admin, threads, backend = backend.name(), reason = backend.reason,
        "data plane starts"
    );
    if let Some(people) = people {
        tracing::info!(%people, "people have a listener of their own");
    }
    if let Some(certified) = certified {
        tracing::info!(%certified, "agents with certificates have a listener of their own");
    }
    if plane.config.tls.is_none() {
        tracing::warn!(
            "no --tls flags: both ports speak plain HTTP; for development and tests only"
        );
    }
    if let Some(file) = file {
        file.announce();
    }
}
