//! From a configuration to running threads.

mod listeners;
mod main_thread;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

use culvert_engine::{Backend, Engine, Limits, Settings, Share};
use culvert_net::listen::Listener;
use culvert_net::tls::{ClientAuth, MinVersion, ServerTls, ServerTlsOptions};
use culvert_proto::channel::ALPN;
use culvert_proto::limits::STREAM_STALL_TIMEOUT_MS;
use culvert_telemetry::lifecycle::{self, EXIT_FAILURE, Shutdown};
use culvert_telemetry::log::{self, LogConfig};
use tokio::sync::mpsc;

use crate::accept::{Port, accept};
use crate::admin;
use crate::clusters::{self, Clusters};
use crate::config::{Config, StateSource, Tls};
use crate::plane::Plane;
use crate::routes::{self, follow::Handed};
use crate::runtime::{self, Runtime};
use listeners::Listeners;
use main_thread::Main;

/// Bytes that the engine may hold for sinks that took a part, over all threads.
const ENGINE_REST_BYTES_MAX: usize = 64 << 20;
/// One direction ended, and no byte moves in the other.
const HALF_CLOSED_MAX_MS: u64 = 3_600_000;
/// The kernel has no memory for a pair's bytes.
const STARVED_MAX_MS: u64 = 10_000;

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
        let (engine, engine_backend) = engine(&config, threads)?;
        let listeners = Listeners::bind(&config)?;
        let addresses = listeners.addresses()?;
        let plane = Plane::new(config, engine, listeners::connections_max());
        announce(&plane, backend, threads, addresses, file.as_ref());
        plane.metrics.runs_on(engine_backend);
        let admin = admin::routes(&plane);
        let ports = listeners.ports(
            tls.as_ref(),
            plane.config.internal_plain,
            &admin,
            &plane.metrics.handshakes_waiting,
        );
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
        // Before anybody hands out listeners of routes.
        let routed: Vec<_> = (0..threads).map(|_| plane.route_threads.join()).collect();
        // First: whoever is accepted finds the first state in use.
        let mut running = vec![spawn("main", backend, move |started| {
            main.run(operators, started)
        })?];
        for (number, routed) in routed.into_iter().enumerate() {
            let clones = [public.try_clone()?, internal.try_clone()?];
            let (plane, ports) = (plane.clone(), ports.clone());
            let name = format!("session-{number}");
            running.push(spawn(&name, backend, move |started| {
                session_thread(plane, ports, clones, routed, started)
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
type Started = std::sync::mpsc::Sender<Result<(), StartError>>;

/// Starts a named thread with its runtime and waits until it says that it serves.
fn spawn<F, W>(name: &str, backend: Backend, work: F) -> Result<JoinHandle<()>, StartError>
where
    F: FnOnce(Started) -> W + Send + 'static,
    W: Future<Output = Result<(), StartError>>,
{
    let (started, wait) = std::sync::mpsc::channel();
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
    routed: mpsc::UnboundedReceiver<Handed>,
    started: Started,
) -> Result<(), StartError> {
    tokio::spawn(routes::serve::run(plane.clone(), routed));
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

/// Starts the relay engine beside `threads` session threads.
///
/// # Errors
/// When io_uring is required and refused, or no thread can be had.
pub fn engine(config: &Config, threads: usize) -> io::Result<(Engine, Backend)> {
    let backend = culvert_engine::probe(config.io_engine)?;
    let asked = config.engine;
    let threads = asked.threads.unwrap_or(threads);
    let engine = Engine::start(&Settings {
        threads,
        backend,
        pairs_max: asked.pairs_max,
        cluster_pairs_max: asked.cluster_pairs_max,
        share: Share {
            pipes_max: asked.pipes.div_ceil(threads),
            rest_bytes_max: ENGINE_REST_BYTES_MAX / threads,
            spins: asked.spin && runtime::cpus_allowed() > 1,
            limits: Limits {
                idle_max_ms: 0,
                half_closed_max_ms: HALF_CLOSED_MAX_MS,
                stalled_max_ms: STREAM_STALL_TIMEOUT_MS,
                starved_max_ms: STARVED_MAX_MS,
            },
        },
    })?;
    tracing::info!(
        threads,
        backend = backend.name(),
        reason = backend.reason,
        pipes = asked.pipes,
        "relay engine starts"
    );
    Ok((engine, backend))
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
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec(), ALPN.to_vec()],
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
