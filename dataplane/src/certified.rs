//! The listener of agents that show certificates: what it shows itself, whom it believes, and
//! what it hands to connected agents (P-14, P-27).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use culvert_engine::Backend;
use culvert_enrol::{Key, certificates, issuer_is, read_certificates, subject, validity};
use culvert_net::tls::{AgentsTls, Reloaded, Shown};
use culvert_proto::close::CloseReason;
use culvert_rpc::{Certifier, NotCertified};
use tokio::time::{Instant, sleep_until};

use crate::plane::{Plane, unix_ms};
use crate::runtime::{sync_directory, write_durable};
use crate::session::ask_to_move;
use crate::sessions::Session;

/// The listener's own key and certificate, made for it by control.
const FILE: &str = "agent-listener.pem";
const FILE_BYTES_MAX: usize = 64 << 10;
/// Files, clocks and control are looked at this often.
const LOOK: Duration = Duration::from_secs(30);
/// A session whose CA was retired has this long to be replaced by one with another certificate.
const RETIRED_MAX: Duration = Duration::from_secs(20);
/// Between two requests to control, while it makes no certificate.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Certificates of agents at a data plane.
pub struct Certified {
    /// TLS of the listener; none where there is no such listener.
    pub tls: Option<Arc<AgentsTls>>,
    certifier: arc_swap::ArcSwapOption<Certifier>,
}

impl Certified {
    /// With a listener or without.
    pub fn new(tls: Option<Arc<AgentsTls>>) -> Self {
        Self {
            tls,
            certifier: arc_swap::ArcSwapOption::empty(),
        }
    }

    /// From now on control can be asked.
    pub fn ask_with(&self, certifier: Certifier) {
        self.certifier.store(Some(Arc::new(certifier)));
    }

    fn certifier(&self) -> Result<Arc<Certifier>, NotCertified> {
        let known = self.certifier.load_full();
        known.ok_or_else(|| NotCertified::Later("this data plane has no control".to_owned()))
    }
}

/// What is known of the listener's own certificate.
struct Own {
    key: Key,
    certificate: Vec<u8>,
}

/// Keeps the listener's certificate and CAs true to state, files and clock. For ever.
pub async fn run(plane: &Arc<Plane>, backend: Backend) {
    let Some(tls) = plane.certified.tls.clone() else {
        return std::future::pending().await;
    };
    let dir = plane.config.state_dir.clone().unwrap_or_default();
    let mut own = read(&dir.join(FILE));
    let mut tables = plane.table_changes();
    let mut told = String::new();
    loop {
        tables.mark_unchanged();
        let cas = plane.table.load().agent_cas.clone();
        let mut wait = LOOK;
        if plane.config.tls.is_none() && !own.as_ref().is_some_and(|own| own.is_good(&cas)) {
            match made(plane, &dir, backend).await {
                Ok(new) => own = Some(new),
                Err(why) => {
                    wait = ASK_AGAIN;
                    tell(&mut told, &why);
                }
            }
        }
        match shown(plane, own.as_ref()).map(|shown| tls.replace(&shown, &cas)) {
            None | Some(Ok(Reloaded::Unchanged)) => {}
            Some(Ok(Reloaded::Changed)) => {
                told.clear();
                tracing::info!(
                    cas = cas.len(),
                    "certificates of the listener of agents in use"
                );
            }
            Some(Err(why)) => tell(&mut told, &why.to_string()),
        }
        tokio::select! {
            changed = tables.changed() => if changed.is_err() { return },
            () = sleep_until(Instant::now() + wait) => {}
        }
    }
}

/// Says it once, as long as it stays the same.
fn tell(told: &mut String, why: &str) {
    if told != why {
        why.clone_into(told);
        tracing::warn!(
            why,
            "certificates of the listener of agents stay as they are"
        );
    }
}

fn shown(plane: &Plane, own: Option<&Own>) -> Option<Shown> {
    match &plane.config.tls {
        Some(tls) => Some(Shown::Files {
            cert: tls.cert.clone(),
            key: tls.key.clone(),
        }),
        None => own.map(|own| Shown::Made {
            certificate: own.certificate.clone(),
            key: own.key.pkcs8_der().clone(),
        }),
    }
}

impl Own {
    /// Whether it need not be replaced: a CA that is believed made it, and its time is not near.
    fn is_good(&self, cas: &[Bytes]) -> bool {
        let now_s = unix_ms() / 1000;
        let is_young = validity(&self.certificate).is_some_and(|it| now_s < it.renew_at_unix_s());
        // Before there is a state nothing can be said.
        is_young && (cas.is_empty() || cas.iter().any(|ca| issuer_is(&self.certificate, ca)))
    }
}

fn read(path: &Path) -> Option<Own> {
    let bytes = std::fs::read(path)
        .ok()
        .filter(|it| it.len() <= FILE_BYTES_MAX)?;
    let text = zeroize::Zeroizing::new(String::from_utf8(bytes).ok()?);
    let own = Own {
        key: Key::from_pem(&text).ok()?,
        certificate: read_certificates(&text)?.into_iter().next()?,
    };
    Some(own)
}

/// Has control make a certificate, and keeps it: a restart without control shows the same.
async fn made(plane: &Plane, dir: &Path, backend: Backend) -> Result<Own, String> {
    let key = Key::generate().map_err(|why| why.to_string())?;
    let csr = key.request().map_err(|why| why.to_string())?;
    let certifier = plane.certified.certifier().map_err(|why| why.to_string())?;
    let certificate = certifier.certify(None, csr).await;
    let certificate = certificate.map_err(|why| why.to_string())?;
    let own = Own { key, certificate };
    if let Err(why) = save(dir, &own, backend).await {
        tracing::error!(%why, "the listener's certificate is not kept; a restart asks for another");
    }
    Ok(own)
}

async fn save(dir: &Path, own: &Own, backend: Backend) -> std::io::Result<()> {
    let path: PathBuf = dir.join(FILE);
    let temporary = path.with_extension("new");
    let text = [&**own.key.to_pem(), &certificates([&own.certificate[..]])].concat();
    write_durable(backend, &temporary, text.into_bytes()).await?;
    std::fs::rename(&temporary, &path)?;
    sync_directory(dir).await
}

/// One renewal at a time for each session.
#[derive(Default)]
pub struct Renewing(AtomicBool);

/// An agent asks for a new certificate: control is asked, the agent answered.
pub fn renew(plane: &Arc<Plane>, session: &Arc<Session>, csr: Vec<u8>) {
    if session.facts.certificate.is_none() || session.renewing.0.swap(true, Ordering::AcqRel) {
        return;
    }
    let (plane, session) = (plane.clone(), session.clone());
    tokio::spawn(async move {
        let certificate = match plane.certified.certifier() {
            Ok(certifier) => certifier.certify(Some(&session.key.cluster), csr).await,
            Err(why) => Err(why),
        };
        session.renewing.0.store(false, Ordering::Release);
        match certificate {
            Ok(der) => {
                let chain = certificates([&der[..]]);
                if let Err(why) = session.carrier.cert(chain, bundle(&plane)) {
                    tracing::debug!(session = %session.key, %why, "a certificate came too late");
                }
            }
            Err(why) => tracing::warn!(
                session = %session.key, %why,
                "no new certificate for an agent; it asks again, and has the rest of the old one's life"
            ),
        }
    });
}

/// Tells an agent which CAs are believed, unless they are none.
pub fn offer_cas(plane: &Plane, session: &Session) {
    let bundle = bundle(plane);
    if session.facts.certificate.is_some()
        && !bundle.is_empty()
        && let Err(why) = session.carrier.cert(String::new(), bundle)
    {
        tracing::debug!(session = %session.key, %why, "the CAs are not told to this agent");
    }
}

/// What came in by a certificate of a CA that nobody believes any more comes back with another
/// one, or ends.
pub fn leave_with_retired_ca(session: &Arc<Session>, cas: &[Bytes]) {
    let Some(certificate) = &session.facts.certificate else {
        return;
    };
    if cas
        .iter()
        .filter_map(|ca| subject(ca))
        .any(|ca| ca == certificate.issuer)
    {
        return;
    }
    tracing::info!(session = %session.key, "the CA of this agent's certificate was retired");
    ask_to_move(session, RETIRED_MAX / 4, RETIRED_MAX);
    let session = session.clone();
    tokio::spawn(async move {
        let ended = tokio::time::timeout(RETIRED_MAX, session.carrier.closed()).await;
        if ended.is_err() {
            session.carrier.close(CloseReason::Revoked);
        }
    });
}

fn bundle(plane: &Plane) -> String {
    certificates(plane.table.load().agent_cas.iter().map(|ca| &ca[..]))
}
