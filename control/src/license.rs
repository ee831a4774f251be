//! The licence in this process: what boot decided, how the heartbeat fares, and
//! what people see of both. Nothing here blocks anything.

mod heartbeat;
mod record;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use culvert_licence::{
    Banner, Boot, Candidate, KeySet, Ladder, Payload, Rung, Severity, Source, Standing,
    TOKEN_BYTES_MAX, banner, boot, login_warning, vendor,
};
use parking_lot::Mutex;

use crate::metrics::Metrics;
use crate::outbound::Outbound;

pub use heartbeat::{Beat, schedule};
pub use record::LicenseRecord;

/// What the configuration says about the licence.
#[derive(Clone)]
pub struct LicenseConfig {
    /// The licence, where a setting holds it.
    pub text: Option<String>,
    /// Files that may hold it, the first that exists.
    pub files: Vec<PathBuf>,
    /// The vendor's keys.
    pub keys: KeySet,
    /// `self-hosted` wants a licence.
    pub mode: String,
    /// As the vendor is told.
    pub org_name: String,
    /// Where heartbeats go; `None` = nowhere.
    pub heartbeat: Option<Server>,
}

/// The license server.
#[derive(Clone)]
pub struct Server {
    /// Its URL.
    pub url: String,
    /// How it is reached.
    pub outbound: Outbound,
}

/// The licence of this hub.
pub struct Licensing {
    boot: Boot,
    keys: KeySet,
    mode: String,
    org_name: String,
    server: Option<Server>,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    record: LicenseRecord,
    latest_version: Option<String>,
    message: Option<String>,
    last_error: Option<String>,
}

/// All that people see of it.
pub struct View {
    /// The verdict.
    pub standing: Standing,
    /// The one banner to show.
    pub banner: Option<Banner>,
    /// An administrator is warned at each login.
    pub login_warning: bool,
    /// The time without success.
    pub rung: Rung,
    /// The same in whole days.
    pub days: u64,
    /// Milliseconds since 1970.
    pub last_success_unix_ms: Option<u64>,
    /// What went wrong last; `None` after a success.
    pub last_error: Option<String>,
    /// The version that the vendor published last.
    pub latest_version: Option<String>,
    /// What the vendor says: plain text, to be escaped where it is shown.
    pub message: Option<String>,
}

impl Licensing {
    /// Judges the licence, offline, and logs what it found.
    #[must_use]
    pub fn start(
        config: LicenseConfig,
        record: LicenseRecord,
        metrics: Arc<Metrics>,
        now_ms: u64,
    ) -> Self {
        let mut candidates = Vec::new();
        let mut candidate = |source, text| candidates.push(Candidate { source, text });
        if let Some(text) = config.text {
            candidate(Source::Env, text);
        }
        if let Some(text) = read_first(&config.files) {
            candidate(Source::File, text);
        }
        if let Some(text) = &record.token {
            candidate(Source::Stored, text.clone());
        }
        let boot = boot(&candidates, &config.keys, &config.mode, now_ms / 1000);
        say(&boot);
        let licensing = Self {
            boot,
            keys: config.keys,
            mode: config.mode,
            org_name: config.org_name,
            server: config.heartbeat,
            state: Mutex::new(State {
                record,
                ..State::default()
            }),
            metrics,
        };
        licensing.show_metrics(now_ms);
        licensing
    }

    /// What boot decided.
    #[must_use]
    pub fn boot(&self) -> &Boot {
        &self.boot
    }

    /// The mode of this hub.
    #[must_use]
    pub fn mode(&self) -> &str {
        &self.mode
    }

    /// Whether the vendor is told anything.
    #[must_use]
    pub fn is_heartbeat_enabled(&self) -> bool {
        self.server.is_some()
    }

    /// All that people see, at `now_ms`.
    #[must_use]
    pub fn view(&self, now_ms: u64) -> View {
        let state = self.state.lock();
        let ladder = self.ladder_at(&state, now_ms);
        // Disabled, the time without success is held and shown to nobody.
        let rung = if self.is_heartbeat_enabled() {
            ladder.rung()
        } else {
            Rung::Silent
        };
        let standing = self.boot.standing_at(now_ms / 1000);
        View {
            standing,
            banner: banner(standing, rung, &self.mode),
            login_warning: login_warning(rung),
            rung,
            days: ladder.days(),
            last_success_unix_ms: state.record.last_success_unix_ms,
            last_error: state.last_error.clone(),
            latest_version: state.latest_version.clone(),
            message: state.message.clone(),
        }
    }

    /// Exactly what would be sent at `now_ms`.
    #[must_use]
    pub fn payload(&self, beat: &Beat, now_ms: u64) -> Payload {
        Payload::from(culvert_licence::Beat {
            license_id: &self.boot.claimed_id,
            version: env!("CARGO_PKG_VERSION"),
            mode: &self.mode,
            standing: self.boot.standing_at(now_ms / 1000),
            org_name: &self.org_name,
            clusters: beat.clusters,
            audit_rows: beat.audit_rows,
            started_unix_ms: beat.started_unix_ms,
        })
    }

    fn ladder_at(&self, state: &State, now_ms: u64) -> Ladder {
        state.record.ladder.at(now_ms, self.is_heartbeat_enabled())
    }

    fn show_metrics(&self, now_ms: u64) {
        let standing = self.boot.standing_at(now_ms / 1000);
        let expiry = self.boot.license.as_ref().map(|it| it.expires_unix_s);
        self.metrics.license(standing, expiry);
    }
}

/// The first of `files` that exists.
fn read_first(files: &[PathBuf]) -> Option<String> {
    files.iter().find_map(|path| match read(path) {
        Ok(text) => Some(text),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => None,
        Err(why) => {
            tracing::warn!(path = %path.display(), %why, "license file cannot be read");
            None
        }
    })
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let most = u64::try_from(TOKEN_BYTES_MAX).unwrap_or(u64::MAX);
    let mut text = String::new();
    // One byte more, so that a longer one is seen to be too long.
    std::fs::File::open(path)?
        .take(most + 1)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn say(boot: &Boot) {
    let source = boot.source.map_or("none", Source::as_str);
    for line in &boot.lines {
        match (line.severity, &boot.license) {
            (severity, Some(license)) if line.text != vendor::LINE_PLACEHOLDER => {
                let tier = license.tier.as_deref().unwrap_or("");
                let most = license.max_clusters.map(|most| most.to_string());
                let (max_clusters, expiry) = (most.unwrap_or_default(), license.expiry());
                let (license_id, org) = (&*license.id, &*license.org);
                match severity {
                    Severity::Info => tracing::info!(
                        license_id,
                        org,
                        tier,
                        max_clusters,
                        expiry,
                        source,
                        "{}",
                        line.text
                    ),
                    Severity::Warn => tracing::warn!(
                        license_id,
                        org,
                        tier,
                        max_clusters,
                        expiry,
                        source,
                        "{}",
                        line.text
                    ),
                }
            }
            (Severity::Info, _) => tracing::info!("{}", line.text),
            (Severity::Warn, _) => match boot.why {
                Some(why) if line.text == vendor::LINE_FAILED => {
                    tracing::warn!(source, %why, "{}", line.text);
                }
                _ => tracing::warn!("{}", line.text),
            },
        }
    }
}
