//! From a configuration to running threads.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use culvert_engine::Backend;
use culvert_net::introduction::OuterServer;
use culvert_net::listen::{ListenOptions, Listener};
use culvert_net::tls::{ServerTls, keep_fresh};
#[cfg(feature = "hub")]
use culvert_observe::Observer;
use culvert_telemetry::admin::serve;
use culvert_telemetry::lifecycle::{self, EXIT_FAILURE, Phase, Shutdown};

use super::hall::Hall;
#[cfg(feature = "hub")]
use super::watch;
use super::{admin, arrive, drain};
use crate::config::RelayConfig;
use crate::launch::{Process, StartError, Started, bind, bind_admin, spawn};
use crate::{engine, runtime};

/// A relay alone is built without the observer.
#[cfg(not(feature = "hub"))]
type Observer = ();

/// Where a relay listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Both sides.
    pub public: SocketAddr,
    /// Metrics and probes.
    pub admin: SocketAddr,
    /// Drains.
    pub drain: SocketAddr,
}

/// A running relay.
pub struct Relay {
    addresses: Addresses,
    hall: Arc<Hall>,
    threads: Vec<JoinHandle<()>>,
}

/// Runs a relay until a signal ends it.
pub fn run(config: RelayConfig) -> ExitCode {
    let process = Process {
        log_level: &config.log_level,
        log_format: config.log_format,
        debuggable: config.debuggable,
    };
    #[cfg(feature = "hub")]
    let started = process
        .prepare()
        .and_then(|()| watch::start(&config))
        .and_then(|observer| Relay::start_with(config, observer, true));
    #[cfg(not(feature = "hub"))]
    let started = process
        .prepare()
        .and_then(|()| Relay::start_with(config, (), true));
    match started {
        Ok(relay) => {
            relay.join();
            ExitCode::SUCCESS
        }
        Err(why) => {
            tracing::error!(%why, "the relay does not start");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

impl Relay {
    /// Starts without signal handlers: ended by [`shutdown`](Self::shutdown).
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: RelayConfig) -> Result<Self, StartError> {
        #[cfg(feature = "hub")]
        let observer = watch::absent();
        #[cfg(not(feature = "hub"))]
        let observer = ();
        Self::start_with(config, observer, false)
    }

    fn start_with(
        config: RelayConfig,
        observer: Observer,
        signals: bool,
    ) -> Result<Self, StartError> {
        let backend = runtime::probe(config.io_engine)?;
        let (outer, tls) = outer(&config)?;
        let threads = config.threads.unwrap_or_else(runtime::cpus_allowed);
        let (engine, engine_backend) = engine::start(config.engine, config.io_engine, threads)?;
        let public = bind(config.addr, ListenOptions::default(), |socket| {
            #[cfg(feature = "hub")]
            watch::listener(&observer, socket);
            #[cfg(not(feature = "hub"))]
            let (_, ()) = (socket, observer);
        })?;
        let operators = bind_admin(config.admin_addr)?;
        let drains = config.drain_addr.map(bind_admin).transpose()?;
        let admin = operators.local_addr()?;
        let addresses = Addresses {
            public: public.local_addr()?,
            admin,
            drain: drains.as_ref().map_or(Ok(admin), TcpListener::local_addr)?,
        };
        let hall = Hall::new(config, outer, engine);
        hall.metrics.runs_on(engine_backend);
        #[cfg(feature = "hub")]
        let _ = hall
            .eye
            .set(watch::Eye::new(&hall.metrics.registry, observer));
        announce(&hall, addresses, backend, threads);
        let main = Main {
            hall: hall.clone(),
            tls,
            signals,
        };
        let mut running = vec![spawn("main", backend, move |started| {
            main.run(operators, drains, started)
        })?];
        for number in 0..threads {
            let (hall, listener) = (hall.clone(), public.try_clone()?);
            running.push(spawn(
                &format!("session-{number}"),
                backend,
                move |started| session_thread(hall, listener, started),
            )?);
        }
        Ok(Self {
            addresses,
            hall,
            threads: running,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Drains it, or stops it.
    pub fn shutdown(&self) -> &Shutdown {
        &self.hall.shutdown
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

fn outer(config: &RelayConfig) -> Result<(OuterServer, Option<Arc<ServerTls>>), StartError> {
    let Some(files) = &config.tls else {
        return Ok((OuterServer::Plain, None));
    };
    let tls = OuterServer::tls(files.cert.clone(), files.key.clone());
    let tls = Arc::new(tls.map_err(|why| StartError::Config(why.to_string()))?);
    let keep = files.keep;
    let outer = OuterServer::Tls {
        tls: tls.clone(),
        keep,
    };
    Ok((outer, Some(tls)))
}

fn announce(hall: &Hall, addresses: Addresses, backend: Backend, threads: usize) {
    let Addresses {
        public,
        admin,
        drain,
    } = addresses;
    tracing::info!(
        %public, %admin, %drain, threads, backend = backend.name(), reason = backend.reason,
        "relay starts"
    );
    if hall.config.tls.is_none() {
        tracing::warn!("--plain: whoever sees the path sees which sides meet here");
    }
}

async fn session_thread(
    hall: Arc<Hall>,
    listener: Listener,
    started: Started,
) -> Result<(), StartError> {
    let _ = started.send(Ok(()));
    tokio::select! {
        accepted = arrive::accept(hall.clone(), listener) => accepted?,
        () = hall.beats.beat() => {}
        () = hall.exiting() => {}
    }
    Ok(())
}

/// What the main thread does.
struct Main {
    hall: Arc<Hall>,
    tls: Option<Arc<ServerTls>>,
    signals: bool,
}

impl Main {
    async fn run(
        self,
        operators: TcpListener,
        drains: Option<TcpListener>,
        started: Started,
    ) -> Result<(), StartError> {
        let hall = &self.hall;
        if self.signals {
            obey_signals(hall)?;
        }
        tokio::spawn(serve(operators, admin::routes(hall)));
        if let Some(drains) = drains {
            tokio::spawn(serve(drains, admin::drain_routes(hall)));
        }
        if let Some(tls) = self.tls {
            tokio::spawn(watch_certificates(hall.clone(), tls));
        }
        let _ = started.send(Ok(()));
        tokio::select! {
            () = refresh(hall) => {}
            () = hall.beats.beat() => {}
            () = drain::run(hall) => {}
        }
        Ok(())
    }
}

fn obey_signals(hall: &Arc<Hall>) -> std::io::Result<()> {
    let signals = lifecycle::signals()?;
    let hall = hall.clone();
    tokio::spawn(async move {
        for phase in [Phase::Draining, Phase::Stopped] {
            signals.reached(phase).await;
            hall.shutdown.advance(phase);
        }
    });
    Ok(())
}

async fn refresh(hall: &Hall) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        hall.refresh_metrics();
    }
}

async fn watch_certificates(hall: Arc<Hall>, tls: Arc<ServerTls>) {
    keep_fresh(tls, move |reloaded| {
        hall.metrics.reload_ok.set(i64::from(reloaded.is_ok()));
        match reloaded {
            Ok(()) => tracing::info!("certificates reloaded"),
            Err(why) => tracing::warn!(%why, "certificates are refused; the last ones are used"),
        }
    })
    .await;
}
