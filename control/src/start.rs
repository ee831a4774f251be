//! From a checked configuration to a running hub, and back.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use culvert_net::crypto::{KeyError, SigningKey, random_bytes};
use culvert_net::listen::{Acceptor, ListenOptions, Listener};
use culvert_net::tls::{ServerTls, TlsError, keep_fresh};
use culvert_rpc::{Access, PeerCheck, bind_unix};
use culvert_telemetry::admin::{self, Admin};
use culvert_telemetry::lifecycle::{self, Phase, Shutdown};
use culvert_telemetry::log::{self, LogConfig};
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use crate::api::{self, Context};
use crate::config::Config;
use crate::hub::{Hub, HubError};
use crate::identity::SignIn;
use crate::license::{self, Licensing};
use crate::metrics::Metrics;
use crate::registry::file::{FileError, Listing};
use crate::store::migrate::{MigrateError, migrate};
use crate::store::{Store, StoreError};
use crate::token;

/// Control never carries a tunnel byte: two threads are plenty.
const THREADS: usize = 2;
/// Requests in flight may finish within this time after SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Why control does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be used.
    #[error("state directory {path}: {why}")]
    StateDir {
        /// Which.
        path: String,
        /// What was seen and what to do.
        why: String,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A store cannot be copied.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The registry file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The registry file cannot be applied.
    #[error(transparent)]
    Apply(#[from] HubError),
    /// A key of ours cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address is not free, or a file cannot be written.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Every listener, bound.
struct Bound {
    api: UnixListener,
    api_tcp: Option<(Acceptor, std::net::SocketAddr)>,
    link: UnixListener,
    link_tls: Option<(Acceptor, Arc<ServerTls>)>,
    admin: std::net::TcpListener,
}

/// Sets up the process (log, runtime, signals) and runs the hub in it.
///
/// # Errors
/// [`StartError`], and what log, runtime or signals say.
pub fn run_process(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let level = config.log_level.clone();
    log::init(&LogConfig {
        level,
        format: config.log_format,
        process: "culvert-control",
    })?;
    lifecycle::forbid_dumps()?;
    // The store, its journal and the keys are nobody else's.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(THREADS).enable_all();
    runtime.build()?.block_on(async {
        let shutdown = lifecycle::signals()?;
        Ok(run(config, &shutdown).await?)
    })
}

/// Runs the hub until `shutdown` says otherwise.
///
/// # Errors
/// [`StartError`], before anything is served.
pub async fn run(mut config: Config, shutdown: &Shutdown) -> Result<(), StartError> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(from) = &config.migrate_from {
        let copied = migrate(from, &config.dsn, unix_ms()).await?;
        tracing::info!(
            from = from.place(),
            to = config.dsn.place(),
            hub_id = copied.hub_id,
            generation = copied.generation,
            clusters = copied.clusters,
            audit_rows = copied.audit_rows,
            "store copied; start culvert-control with this --db-dsn and the same --state-dir"
        );
        return Ok(());
    }
    state_dir(&config.state_dir)?;
    let key = SigningKey::load_or_generate(&config.state_dir.join("signing.key"))?;
    let admin_token = match config.listen {
        Some(_) => Some(token::admin_token(&config.state_dir.join("admin-token"))?),
        None => None,
    };
    let tls = match &config.state_tls {
        Some((_, options)) => Some(Arc::new(ServerTls::load(options.clone())?)),
        None => None,
    };
    let (store, loaded) = Store::open(&config.dsn, unix_ms()).await?;
    let metrics = Arc::new(Metrics::new());
    let licensing = Arc::new(Licensing::start(
        config.license.clone(),
        loaded.license.clone(),
        metrics.clone(),
        unix_ms(),
    ));
    let hub = Arc::new(Hub::new(
        store,
        loaded,
        key,
        metrics.clone(),
        Box::new(unix_ms),
    ));
    if let Some(path) = &config.clusters {
        let changes = hub.apply_file(Listing::read(path)?).await?;
        tracing::info!(path = %path.display(), changes, "registry file applied");
    }
    let has_listener = !config.enrolment.names.is_empty();
    hub.enrol_with(std::mem::take(&mut config.enrolment));
    let bound = Bound::bind(&config, tls)?;
    let sign_in = config.sign_in.take();
    hub.publish_sign_in(sign_in.as_ref().map(SignIn::published))
        .await?;
    if has_listener {
        hub.ensure_agent_ca().await?;
    }
    started(&config, &hub, &bound);

    let fanout = config.fanout.take().map(Arc::new);
    let context = Arc::new(Context {
        sign_in,
        admin: admin_token,
        hosts: bound
            .api_tcp
            .as_ref()
            .map(|(_, addr)| hosts(*addr, config.public_url.as_deref()))
            .unwrap_or_default(),
        public_url: config.public_url.clone(),
        personal_life_seconds: config.personal_life_seconds,
        fanout,
        events: api::Events::new(u64::from_be_bytes(random_bytes()), shutdown.clone()),
        connect: api::Connects::new(config.connect_life_ms),
        ..Context::new(hub.clone(), metrics.clone(), licensing.clone())
    });
    let mut tasks = JoinSet::new();
    bound.serve(
        &config,
        &hub,
        context.clone(),
        &metrics,
        shutdown,
        &mut tasks,
    );
    let mut background = background(config, &hub, licensing);
    background.spawn(api::watch(context));

    shutdown.reached(Phase::Draining).await;
    let finished = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_GRACE, finished).await;
    background.abort_all();
    hub.record_uses().await;
    hub.close().await;
    shutdown.advance(Phase::Stopped);
    tracing::info!("culvert-control stopped");
    Ok(())
}

/// What runs beside the listeners, until it is aborted.
fn background(config: Config, hub: &Arc<Hub>, licensing: Arc<Licensing>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let kept = hub.clone();
    tasks.spawn(async move { kept.upkeep().await });
    if hub.is_shared() {
        let kept = hub.clone();
        tasks.spawn(async move { kept.follow_store().await });
    }
    let kept = hub.clone();
    tasks.spawn(async move { kept.reap_enrolment().await });
    let kept = hub.clone();
    tasks.spawn(async move { kept.keep_audit(config.retention).await });
    if config.audit_stdout {
        let kept = hub.clone();
        tasks.spawn(async move { kept.print_audit(print_row).await });
    }
    let kept = hub.clone();
    tasks.spawn(async move { licensing.run(&kept, license::schedule).await });
    if let Some(path) = config.clusters {
        let kept = hub.clone();
        tasks.spawn(async move { kept.follow_file(&path).await });
    }
    tasks
}

fn print_row(row: crate::audit::Recorded) {
    use std::io::Write as _;
    // A reader that is gone costs its lines; the store has the rows.
    let _ = writeln!(std::io::stdout(), "{}", api::audit_line(row));
}

impl Bound {
    fn bind(config: &Config, tls: Option<Arc<ServerTls>>) -> Result<Self, StartError> {
        // With another user allowed in, the check of the peer's uid is what guards the socket.
        let mode = if config.peer_uid.is_some() {
            0o666
        } else {
            0o600
        };
        let unix = |path: &Path, flag: &str| {
            bind_unix(path, mode).map_err(|source| StartError::Io {
                what: format!("{flag} {}", path.display()),
                source,
            })
        };
        let api_tcp = match config.listen {
            Some(addr) => {
                let bound = tcp(addr, "--listen")?;
                let addr = bound.local_addr().unwrap_or(addr);
                Some((bound, addr))
            }
            None => None,
        };
        let link_tls = match (&config.state_tls, tls) {
            (Some((addr, _)), Some(tls)) => Some((tcp(*addr, "--state-addr")?, tls)),
            _ => None,
        };
        let admin =
            std::net::TcpListener::bind(config.admin_addr).map_err(|source| StartError::Io {
                what: format!("--admin-addr {}", config.admin_addr),
                source,
            })?;
        Ok(Self {
            api: unix(&config.socket, "--socket")?,
            link: unix(&config.state_socket, "--state-socket")?,
            api_tcp,
            link_tls,
            admin,
        })
    }

    fn serve(
        self,
        config: &Config,
        hub: &Arc<Hub>,
        context: Arc<Context>,
        metrics: &Metrics,
        shutdown: &Shutdown,
        tasks: &mut JoinSet<()>,
    ) {
        let check = PeerCheck {
            uid: config.peer_uid,
        };
        let router = api::router(context);
        tasks.spawn(api::serve_unix(
            self.api,
            check,
            router.clone(),
            shutdown.clone(),
        ));
        if let Some((listener, _)) = self.api_tcp {
            tasks.spawn(api::serve_tcp(listener, router, shutdown.clone()));
        }
        let local = Access::Unix {
            listener: self.link,
            check,
        };
        tasks.spawn(link(hub.clone(), local, shutdown.clone()));
        if let Some((listener, tls)) = self.link_tls {
            let fresh = tls.clone();
            tokio::spawn(keep_fresh(fresh, |done| match done {
                Ok(()) => tracing::info!("certificates of the state link changed"),
                Err(why) => tracing::warn!(%why, "certificates of the state link stay as they are"),
            }));
            tasks.spawn(link(
                hub.clone(),
                Access::Tls { listener, tls },
                shutdown.clone(),
            ));
        }
        let (told, asked) = (shutdown.clone(), hub.clone());
        let admin = Admin {
            metrics: metrics.registry.clone(),
            healthz: Box::new(|| true),
            readyz: Box::new(move || {
                asked.fleet(|fleet| fleet.dataplanes().any(|plane| plane.link.is_some()))
            }),
            readyz_serve: Box::new(move || told.phase() == Phase::Running),
            extra: Box::new(|_, _, _| None),
        };
        let listener = self.admin;
        // Probes and metrics answer until the process ends.
        tokio::spawn(async move {
            if let Err(why) = admin::serve(listener, Arc::new(admin)).await {
                tracing::error!(%why, "admin listener ended");
            }
        });
    }
}

async fn link(hub: Arc<Hub>, access: Access, shutdown: Shutdown) {
    let stop = async move { shutdown.reached(Phase::Draining).await };
    if let Err(why) = culvert_rpc::serve(hub, access, stop).await {
        tracing::error!(%why, "state link ended");
    }
}

fn tcp(addr: std::net::SocketAddr, flag: &str) -> Result<Acceptor, StartError> {
    let bound = Listener::bind(addr, ListenOptions::default()).and_then(Listener::start);
    bound.map_err(|source| StartError::Io {
        what: format!("{flag} {addr}"),
        source,
    })
}

/// The `Host` values of a loopback listener, and of the hub that is in front of it.
fn hosts(addr: std::net::SocketAddr, public_url: Option<&str>) -> Vec<String> {
    let names = ["localhost", "127.0.0.1", "[::1]"];
    let own = names.iter().map(|name| format!("{name}:{}", addr.port()));
    let public = public_url.and_then(|url| url.parse::<http::Uri>().ok());
    let public = public.and_then(|url| url.authority().map(ToString::to_string));
    own.chain(public).collect()
}

fn started(config: &Config, hub: &Hub, bound: &Bound) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        hub_id = hub.id(),
        generation = hub.generation().0,
        clusters = hub.clusters().len(),
        store = config.dsn.place(),
        socket = %config.socket.display(),
        state_socket = %config.state_socket.display(),
        "culvert-control serves"
    );
    if let Some((_, addr)) = &bound.api_tcp {
        let file = config.state_dir.join("admin-token");
        tracing::info!(%addr, token_file = %file.display(), "admin API on TCP");
    }
}

/// Makes the directory, or checks that it is ours alone.
fn state_dir(path: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    let wrong = |why: String| StartError::StateDir {
        path: path.display().to_string(),
        why,
    };
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|why| wrong(format!("{why}; make it, or give another --state-dir")))?;
    let meta = std::fs::metadata(path).map_err(|why| wrong(why.to_string()))?;
    let (mode, uid) = (meta.mode() & 0o777, rustix::process::geteuid().as_raw());
    if meta.uid() != uid {
        return Err(wrong(format!(
            "owned by uid {}, this process runs as uid {uid}",
            meta.uid()
        )));
    }
    if mode & 0o022 != 0 {
        return Err(wrong(format!(
            "mode {mode:04o} lets others write; run: chmod 0700 {}",
            path.display()
        )));
    }
    Ok(())
}

fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
