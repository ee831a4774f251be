//! Where the table comes from: control's link, or a clusters file.
//!
//! Nothing here is on the path of a request. A failure keeps the last verified
//! state.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_engine::Backend;
use culvert_net::crypto::random_bytes;
use culvert_net::tls::{ClientTls, ClientTlsOptions, Roots};
use culvert_proto::id::{Generation, InstanceId};
use culvert_proto::update::{SignedFrame, State};
use culvert_rpc::{Event, Held, LinkConfig, PeerCheck, Subscription, Trust};

use crate::clusters;
use crate::config::ControlLink;
use crate::plane::{Plane, gauge, unix_ms};
use crate::session::offer_rotation;
use crate::snapshot::{Appended, Copies};
use crate::table::Source;

/// A report leaves at least this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// Changes are gathered for this long before a report.
const REPORT_DELAY: Duration = Duration::from_millis(200);
/// A clusters file is looked at this often.
const FILE_INTERVAL: Duration = Duration::from_secs(1);

/// The state this data plane holds, and its copy on disk.
pub struct Subscriber {
    plane: Arc<Plane>,
    state: State,
    copies: Option<Copies>,
    subscription: Subscription,
    dataplane_id: Arc<str>,
    connected: bool,
}

impl Subscriber {
    /// Takes the copy on disk into use and begins to call control. Runs on the
    /// current runtime.
    ///
    /// # Errors
    /// When the link cannot be set up: a file that is unusable.
    pub fn start(plane: Arc<Plane>, link: &ControlLink, backend: Backend) -> Result<Self, String> {
        let state_dir = plane.config.state_dir.clone();
        let trust = match (&link.key, &state_dir) {
            (Some(key), _) => Trust::File(key.clone()),
            (None, Some(dir)) => Trust::File(dir.join("control.key")),
            (None, None) => return Err("neither --control-key nor --state-dir is given".into()),
        };
        let mut copies = state_dir.clone().map(|dir| Copies::new(dir, backend));
        let state = match &mut copies {
            Some(copies) => cold_start(&plane, copies, &trust)?,
            None => State::default(),
        };
        let held =
            (state.generation > Generation(0) && !plane.config.accept_older_snapshot).then(|| {
                Held {
                    hub_id: state.hub_id.to_string(),
                    generation: state.generation,
                }
            });
        let config = LinkConfig {
            address: link
                .addr
                .parse()
                .map_err(|why| format!("--control: {why}"))?,
            peer: PeerCheck::default(),
            tls: client_tls(link)?,
            trust,
            held,
            outbox: plane.audit.mail().map(|mail| mail as _),
        };
        let dataplane_id = identity(state_dir.as_deref());
        let subscription = Subscription::start(config);
        plane.certified.ask_with(subscription.certifier());
        Ok(Self {
            subscription,
            plane,
            state,
            copies,
            dataplane_id,
            connected: false,
        })
    }

    /// Follows control for ever.
    pub async fn run(mut self) {
        let started = unix_ms();
        let reporter = self.subscription.reporter();
        let mut beat = tokio::time::interval(REPORT_INTERVAL);
        loop {
            tokio::select! {
                // Reported at once: control's caller waits for the state to be in use.
                event = self.subscription.next() => self.take(event).await,
                () = self.plane.changed() => tokio::time::sleep(REPORT_DELAY).await,
                _ = beat.tick() => {}
            }
            if self.connected {
                self.plane.confirm();
            }
            reporter.report(&crate::links::report(
                &self.plane,
                &self.dataplane_id,
                started,
            ));
        }
    }

    async fn take(&mut self, event: Event) {
        match event {
            Event::Connected => {
                tracing::info!("control connected");
                self.set_connected(true);
            }
            Event::Disconnected { why } => {
                if std::mem::replace(&mut self.connected, false) {
                    tracing::warn!(%why, "control is gone; the last state is served");
                } else {
                    tracing::debug!(%why, "control does not answer");
                }
                self.set_connected(false);
            }
            Event::Snapshot { snapshot, signed } => {
                if self.plane.config.accept_older_snapshot
                    && snapshot.generation < self.state.generation
                {
                    self.state = State::default();
                }
                if let Err(why) = self.state.replace(snapshot) {
                    return tracing::error!(%why, "control's snapshot is refused");
                }
                if self.adopt()
                    && let Some(copies) = &mut self.copies
                {
                    let saved = copies.save(self.state.generation, &signed).await;
                    saved.unwrap_or_else(|why| not_kept(&why));
                }
            }
            Event::Update { update, signed } => {
                if let Err(why) = self.state.apply(&update) {
                    tracing::warn!(%why, "asking control for a snapshot");
                    return self.subscription.reporter().need_snapshot();
                }
                if self.adopt() {
                    self.append(&signed).await;
                }
            }
            Event::Rotation(rotation) => {
                let cluster = rotation.cluster.clone();
                self.plane.links.offer(rotation);
                for session in self.plane.sessions.of(&cluster) {
                    offer_rotation(&self.plane, &session);
                }
            }
        }
    }

    /// In use first, then on disk: a revocation does not wait for an fsync.
    fn adopt(&self) -> bool {
        if let Err(why) = self.plane.adopt(&self.state, Source::Control) {
            tracing::error!(%why, "control's state is refused; the last one is served");
            return false;
        }
        self.plane.links.keep_listed(&self.state);
        tracing::info!(
            generation = %self.state.generation, clusters = self.state.clusters.len(),
            "state in use"
        );
        true
    }

    /// Keeps an update behind the copy that it follows.
    async fn append(&mut self, update: &SignedFrame) {
        let Some(copies) = &mut self.copies else {
            return;
        };
        match copies.append(self.state.generation, update).await {
            Ok(Appended::Kept) => {}
            Ok(Appended::NeedSnapshot) => self.subscription.reporter().need_snapshot(),
            Err(why) => not_kept(&why),
        }
    }

    fn set_connected(&mut self, connected: bool) {
        self.connected = connected;
        self.plane
            .metrics
            .control_connected
            .set(i64::from(connected));
    }
}

fn not_kept(why: &std::io::Error) {
    tracing::error!(%why, "the copy of the state cannot be written; \
        a restart without control would serve an older one");
}

/// The newest copy that bears control's signature, in use at once.
fn cold_start(plane: &Plane, copies: &mut Copies, trust: &Trust) -> Result<State, String> {
    let Some(key) = trust.key().map_err(|why| why.to_string())? else {
        return Ok(State::default());
    };
    let loaded = copies.load(key);
    for why in &loaded.bad {
        tracing::warn!(%why, "a copy of the state is not used");
    }
    let Some(state) = loaded.state else {
        return Ok(State::default());
    };
    let age_max = u64::from(state.settings.snapshot_age_max_s) * 1000;
    let age = unix_ms().saturating_sub(state.issued_unix_ms);
    if age_max > 0 && age > age_max {
        tracing::warn!(
            age_s = age / 1000,
            "the copy of the state is too old to be served"
        );
        return Ok(state);
    }
    plane.adopt(&state, Source::Disk)?;
    tracing::info!(
        generation = %state.generation, clusters = state.clusters.len(),
        "state from disk in use; control is not needed to serve it"
    );
    Ok(state)
}

fn client_tls(link: &ControlLink) -> Result<Option<Arc<ClientTls>>, String> {
    if link.identity.is_none() {
        return Ok(None);
    }
    let options = ClientTlsOptions {
        roots: link.ca.clone().map_or(Roots::System, Roots::File),
        identity: link.identity.clone(),
        alpn: vec![b"h2".to_vec()],
        ..ClientTlsOptions::default()
    };
    let tls = ClientTls::load(options).map_err(|why| why.to_string())?;
    Ok(Some(Arc::new(tls)))
}

/// Stable over restarts where there is a state directory.
fn identity(dir: Option<&Path>) -> Arc<str> {
    let fresh = || InstanceId::v7(unix_ms(), random_bytes()).to_string();
    let Some(path) = dir.map(|dir| dir.join("dataplane.id")) else {
        return fresh().into();
    };
    match std::fs::read_to_string(&path) {
        Ok(id) if id.trim().parse::<InstanceId>().is_ok() => id.trim().into(),
        _ => {
            let id = fresh();
            if let Err(why) = std::fs::write(&path, &id) {
                tracing::warn!(%why, path = %path.display(), "the data plane's id is not kept");
            }
            id.into()
        }
    }
}

/// Serves a clusters file, and serves it anew whenever its content changes.
pub struct ClustersFile {
    plane: Arc<Plane>,
    path: PathBuf,
    state: State,
    seen: Vec<u8>,
}

impl ClustersFile {
    /// A file that was read already.
    pub fn new(plane: Arc<Plane>, path: PathBuf, state: State) -> Self {
        let seen = std::fs::read(&path).unwrap_or_default();
        Self {
            plane,
            path,
            state,
            seen,
        }
    }

    /// Follows the file for ever.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(FILE_INTERVAL);
        loop {
            tick.tick().await;
            match std::fs::read(&self.path) {
                Ok(content) if content == self.seen => self.plane.confirm(),
                Ok(content) => {
                    self.seen = content;
                    self.reload();
                }
                Err(why) => tracing::debug!(%why, "the clusters file cannot be read"),
            }
        }
    }

    fn reload(&mut self) {
        let metrics = &self.plane.metrics;
        let read = clusters::read(&self.path, self.plane.config.tls.is_some());
        let adopted = read.map_err(|why| why.to_string()).and_then(|mut read| {
            read.state.generation = Generation(self.state.generation.0 + 1);
            carry_floors(&self.state, &mut read.state);
            self.plane.adopt(&read.state, Source::File)?;
            read.announce();
            self.state = read.state;
            Ok(())
        });
        metrics.reload_ok.set(i64::from(adopted.is_ok()));
        match adopted {
            Ok(()) => {
                metrics.reload_at.set(gauge(unix_ms() / 1000));
                tracing::info!(
                    clusters = self.state.clusters.len(),
                    "clusters file reloaded"
                );
            }
            Err(why) => {
                tracing::warn!(%why, "the clusters file is refused; the last one is served");
            }
        }
    }
}

/// A token that left the file ends the sessions that came with it.
fn carry_floors(before: &State, now: &mut State) {
    for (id, cluster) in &mut now.clusters {
        let Some(old) = before.clusters.get(id) else {
            continue;
        };
        let lost = old.tokens.iter().any(|token| {
            !cluster
                .tokens
                .iter()
                .any(|kept| kept.digest == token.digest)
        });
        let mut raised = (**cluster).clone();
        raised.epoch_floor = match lost {
            true => culvert_proto::id::Epoch(unix_ms()),
            false => old.epoch_floor,
        };
        *cluster = Arc::new(raised);
    }
}
