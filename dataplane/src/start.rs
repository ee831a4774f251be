//! From a configuration to running threads.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use culvert_net::listen::{ListenOptions, Listener};
use culvert_net::tls::{ClientAuth, MinVersion, ServerTls, ServerTlsOptions, keep_fresh};
use culvert_telemetry::admin::{Admin, serve};
use culvert_telemetry::lifecycle::{self, EXIT_FAILURE, Phase, Shutdown};
use culvert_telemetry::log::{self, LogConfig};
use culvert_telemetry::metrics::IntGauge;

use crate::accept::{Port, Side, accept};
use crate::clusters::{self, Clusters};
use crate::config::{Config, StateSource, Tls};
use crate::lobby::{LOBBY_MAX, Lobby};
use crate::plane::{Plane, gauge, unix_ms};
use crate::runtime::{self, Backend, Runtime};
use crate::subscribe::{ClustersFile, Subscriber};
use crate::table::Source;
use crate::{admin, drain};

/// Descriptors kept for files, logs, control and the admin port.
const DESCRIPTORS_KEPT: u64 = 128;

/// Why a data plane does not start. Nothing was bound when the configuration
/// was at fault.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something the configuration names is unusable.
    #[error("{0}")]
    Config(String),
    /// The operating system refuses something.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// Where a data plane listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Agents.
    pub public: SocketAddr,
    /// Clients.
    pub internal: SocketAddr,
    /// Operators.
    pub admin: SocketAddr,
}

/// A running data plane.
pub struct Dataplane {
    addresses: Addresses,
    plane: Arc<Plane>,
    threads: Vec<JoinHandle<()>>,
}

/// Runs a data plane until a signal ends it.
pub fn run(config: Config) -> ExitCode {
    let logs = LogConfig {
        level: config.log_level.clone(),
        format: config.log_format,
        process: "culvert-dataplane",
    };
    let started = log::init(&logs).map_err(|why| StartError::Config(why.to_string()));
    let started = started.and_then(|_| {
        if config.debuggable {
            tracing::warn!("--debuggable: core dumps and debuggers may read secrets");
        } else {
            lifecycle::forbid_dumps()?;
        }
        raise_descriptor_limit();
        Dataplane::start_with(config, true)
    });
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
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, false)
    }

    fn start_with(config: Config, signals: bool) -> Result<Self, StartError> {
        let backend = runtime::probe(config.io_engine)?;
        let tls = config.tls.as_ref().map(load_tls).transpose()?;
        let file = read_clusters(&config)?;
        let threads = config.threads.unwrap_or_else(runtime::cpus_allowed);
        let listeners = Listeners::bind(&config)?;
        let addresses = listeners.addresses()?;
        let plane = Plane::new(config);
        announce(&plane, backend, threads, addresses, file.as_ref());
        let admin = admin::routes(&plane);
        let ports = listeners.ports(tls.as_ref(), &admin, &plane.metrics.handshakes_waiting);
        let Listeners {
            public,
            internal,
            admin: operators,
        } = listeners;
        let main = Main {
            plane: plane.clone(),
            backend,
            admin,
            tls,
            file,
            signals,
        };
        // First: whoever is accepted finds the first state in use.
        let mut running = vec![spawn("main", backend, move |started| {
            main.run(operators, started)
        })?];
        for number in 0..threads {
            let clones = [public.try_clone()?, internal.try_clone()?];
            let (plane, ports) = (plane.clone(), ports.clone());
            let name = format!("session-{number}");
            running.push(spawn(&name, backend, move |started| {
                session_thread(plane, ports, clones, started)
            })?);
        }
        plane.set_listening();
        Ok(Self {
            addresses,
            plane,
            threads: running,
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
    }
}

/// Told once, when a thread serves or cannot.
type Started = mpsc::Sender<Result<(), StartError>>;

/// Starts a named thread with its runtime and waits until it says that it serves.
fn spawn<F, W>(name: &str, backend: Backend, work: F) -> Result<JoinHandle<()>, StartError>
where
    F: FnOnce(Started) -> W + Send + 'static,
    W: Future<Output = Result<(), StartError>>,
{
    let (started, wait) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let failed = started.clone();
            let runtime = Runtime::new(backend).map_err(StartError::from);
            let ended = runtime.and_then(|runtime| runtime.block_on(work(started)));
            if let Err(why) = ended {
                let _ = failed.send(Err(why));
            }
        })?;
    match wait.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(why)) => Err(why),
        Err(_) => Err(io::Error::other("a thread ended before it served").into()),
    }
}

async fn session_thread(
    plane: Arc<Plane>,
    ports: [Arc<Port>; 2],
    listeners: [Listener; 2],
    started: Started,
) -> Result<(), StartError> {
    for (port, listener) in ports.into_iter().zip(listeners) {
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

/// What the main thread does.
struct Main {
    plane: Arc<Plane>,
    backend: Backend,
    admin: Arc<Admin>,
    tls: Option<Arc<ServerTls>>,
    file: Option<Clusters>,
    signals: bool,
}

impl Main {
    async fn run(self, listener: TcpListener, started: Started) -> Result<(), StartError> {
        let plane = self.plane.clone();
        let follow = self.follow_state()?;
        if self.signals {
            obey_signals(&plane)?;
        }
        tokio::spawn(serve(listener, self.admin));
        if let Some(tls) = self.tls {
            tokio::spawn(watch_certificates(plane.clone(), tls));
        }
        let _ = started.send(Ok(()));
        tokio::select! {
            () = follow => {}
            () = refresh(&plane) => {}
            () = plane.beat() => {}
            () = drain::run(&plane) => {}
        }
        Ok(())
    }

    /// Takes the first state into use and returns what follows its changes.
    fn follow_state(&self) -> Result<Box<dyn Future<Output = ()> + Unpin>, StartError> {
        let config = |why: String| StartError::Config(why);
        let plane = self.plane.clone();
        let state = match &plane.config.state {
            StateSource::Control(link) => {
                let subscriber = Subscriber::start(plane.clone(), link, self.backend);
                return Ok(Box::new(Box::pin(subscriber.map_err(config)?.run())));
            }
            StateSource::ClustersFile(_) | StateSource::ClustersText(_) => self.file.as_ref(),
        };
        let Some(read) = state else {
            return Err(config("the clusters file was not read".to_owned()));
        };
        plane.adopt(&read.state, Source::File).map_err(config)?;
        match &plane.config.state {
            StateSource::ClustersFile(path) => {
                let file = ClustersFile::new(plane.clone(), path.clone(), read.state.clone());
                Ok(Box::new(Box::pin(file.run())))
            }
            _ => Ok(Box::new(Box::pin(std::future::pending()))),
        }
    }
}

fn obey_signals(plane: &Arc<Plane>) -> io::Result<()> {
    let signals = lifecycle::signals()?;
    let plane = plane.clone();
    tokio::spawn(async move {
        for phase in [Phase::Draining, Phase::Stopped] {
            signals.reached(phase).await;
            plane.shutdown.advance(phase);
        }
    });
    Ok(())
}

async fn refresh(plane: &Plane) {
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        tick.tick().await;
        plane.refresh_metrics();
        plane.shed();
    }
}

async fn watch_certificates(plane: Arc<Plane>, tls: Arc<ServerTls>) {
    keep_fresh(tls, move |reloaded| {
        plane.metrics.reload_ok.set(i64::from(reloaded.is_ok()));
        match reloaded {
            Ok(()) => {
                plane.metrics.reload_at.set(gauge(unix_ms() / 1000));
                tracing::info!("certificates reloaded");
            }
            Err(why) => tracing::warn!(%why, "certificates are refused; the last ones are used"),
        }
    })
    .await;
}

/// The bound sockets.
struct Listeners {
    public: Listener,
    internal: Listener,
    admin: TcpListener,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Self, StartError> {
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

    fn addresses(&self) -> io::Result<Addresses> {
        Ok(Addresses {
            public: self.public.local_addr()?,
            internal: self.internal.local_addr()?,
            admin: self.admin.local_addr()?,
        })
    }

    fn ports(
        &self,
        tls: Option<&Arc<ServerTls>>,
        admin: &Arc<Admin>,
        waiting: &IntGauge,
    ) -> [Arc<Port>; 2] {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let share = descriptors
            .unwrap_or(u64::MAX)
            .saturating_sub(DESCRIPTORS_KEPT)
            / 2;
        let connections_max = usize::try_from(share).unwrap_or(usize::MAX).max(16);
        [Side::Public, Side::Internal].map(|side| {
            Arc::new(Port {
                side,
                tls: tls.cloned(),
                lobby: Lobby::new((connections_max / 2).min(LOBBY_MAX), waiting.clone()),
                admin: admin.clone(),
                connections_max,
                connections: AtomicUsize::new(0),
            })
        })
    }
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

fn load_tls(tls: &Tls) -> Result<Arc<ServerTls>, StartError> {
    let options = ServerTlsOptions {
        cert: tls.cert.clone(),
        key: tls.key.clone(),
        client_auth: tls.client_ca.clone().map(|ca| ClientAuth {
            ca,
            required: true,
            rsa: true,
        }),
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
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
    let labels = [backend.name(), backend.reason];
    plane.metrics.io_backend.with_label_values(&labels).set(1);
    let Addresses {
        public,
        internal,
        admin,
    } = addresses;
    tracing::info!(
        %public, %internal, %admin, threads, backend = backend.name(), reason = backend.reason,
        "data plane starts"
    );
    if plane.config.tls.is_none() {
        tracing::warn!(
            "no --tls flags: both ports speak plain HTTP; for development and tests only"
        );
    }
    if let Some(file) = file {
        file.announce();
    }
}

/// As many descriptors as the system allows this process.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(why) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%why, "the limit of descriptors stays");
    }
}
