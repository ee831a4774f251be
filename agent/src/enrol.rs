//! The certificate that says who we are: kept on disk, renewed over the session (P-27).

mod register;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_enrol::{
    AgentCertificate, CertificateFault, Key, Validity, certificates, read_certificates,
};
use culvert_net::carrier::Carrier;
use culvert_net::tls::{ClientTls, ClientTlsOptions, Reload as _, Roots, TlsError};
use culvert_proto::id::ClusterId;
use culvert_telemetry::metrics::IntGauge;
use parking_lot::Mutex;
use tokio::time::sleep;
use zeroize::Zeroizing;

use crate::credential::write_durably;

pub use register::{Bootstrap, RegisterError, register};

/// Key and certificate, in one file: they change together or not at all.
pub const IDENTITY_FILE: &str = "agent-identity.pem";
/// The CAs of the hub's agents.
pub const CA_FILE: &str = "agent-ca.pem";
const FILE_BYTES_MAX: u64 = 64 << 10;
/// No answer to a request for a new certificate: it is asked again after a tenth of what is left,
/// within these.
const ASK_AGAIN_MIN: Duration = Duration::from_secs(2);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(600);
/// The clock is looked at this often, since it may be set.
const LOOK_MAX: Duration = Duration::from_secs(3600);

/// Why there is no identity, or none is kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others can read the key.
    #[error("{0} can be read by others; chmod 600 {0}")]
    Open(PathBuf),
    /// A file is not what was written there.
    #[error("{0} is damaged; remove it and start with a new join string")]
    Damaged(PathBuf),
    /// What came is no certificate of an agent.
    #[error("the hub's certificate: {0}")]
    Certificate(#[from] CertificateFault),
    /// What came is for another key, cluster, or nobody asked.
    #[error("the hub's certificate: {0}")]
    Unasked(&'static str),
    /// TLS does not take it.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What is known of the certificate on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Whose agent it is.
    pub cluster: ClusterId,
    /// Its time.
    pub validity: Validity,
}

/// The identity in use. Shared by all sessions.
pub struct Identity {
    dir: PathBuf,
    tls: Arc<ClientTls>,
    expiry: IntGauge,
    inner: Mutex<Inner>,
}

struct Inner {
    known: Known,
    /// The key of a request that was not answered yet.
    asked: Option<Key>,
}

/// What the directory keeps; `None` where no agent was enrolled.
///
/// # Errors
/// [`IdentityError`], naming the file.
pub fn read(dir: &Path) -> Result<Option<Known>, IdentityError> {
    let path = dir.join(IDENTITY_FILE);
    let Some(text) = read_private(&path)? else {
        return Ok(None);
    };
    let damaged = || IdentityError::Damaged(path.clone());
    let key = Key::from_pem(&text).map_err(|_| damaged())?;
    let chain = read_certificates(&text).ok_or_else(damaged)?;
    let known = check(&chain, &key).map_err(|_| damaged())?;
    let ca = dir.join(CA_FILE);
    let bundle = fs::read_to_string(&ca).map_err(|source| IdentityError::Io {
        path: ca.clone(),
        source,
    })?;
    match read_certificates(&bundle) {
        Some(_) => Ok(Some(known)),
        None => Err(IdentityError::Damaged(ca)),
    }
}

/// Keeps key, chain and CAs, so that they survive a power cut. The CAs first: they are a superset
/// of those before until the certificate is written.
///
/// # Errors
/// [`IdentityError::Io`]; the old ones stay.
pub fn keep(dir: &Path, key: &Key, chain: &str, ca_bundle: &str) -> Result<(), IdentityError> {
    keep_cas(dir, ca_bundle)?;
    let text = Zeroizing::new([&**key.to_pem(), chain].concat());
    write(dir, IDENTITY_FILE, &text)
}

fn keep_cas(dir: &Path, ca_bundle: &str) -> Result<(), IdentityError> {
    write(dir, CA_FILE, ca_bundle)
}

fn write(dir: &Path, name: &str, text: &str) -> Result<(), IdentityError> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}.new"));
    write_durably(&temporary, &path, text.as_bytes())
        .map_err(|source| IdentityError::Io { path, source })
}

fn read_private(path: &Path) -> Result<Option<Zeroizing<String>>, IdentityError> {
    let failed = |source| IdentityError::Io {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(failed(why)),
    };
    if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(IdentityError::Open(path.to_owned()));
    }
    let mut text = Zeroizing::new(String::with_capacity(8 << 10));
    let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
    match read {
        Ok(_) => Ok(Some(text)),
        Err(why) if why.kind() == io::ErrorKind::InvalidData => {
            Err(IdentityError::Damaged(path.to_owned()))
        }
        Err(why) => Err(failed(why)),
    }
}

/// Whether the chain begins with a certificate of an agent for this key.
fn check(chain: &[Vec<u8>], key: &Key) -> Result<Known, IdentityError> {
    let leaf = chain.first().ok_or(CertificateFault::Unreadable)?;
    let certificate = AgentCertificate::read(leaf)?;
    if !key.is_of(leaf) {
        return Err(IdentityError::Unasked("it is for another key"));
    }
    Ok(Known {
        cluster: certificate.cluster,
        validity: certificate.validity,
    })
}

/// TLS of sessions: what was trusted before, the hub's own CAs, and our certificate.
#[must_use]
pub fn session_tls(dir: &Path, base: &ClientTlsOptions) -> ClientTlsOptions {
    let file = dir.join(IDENTITY_FILE);
    let ca = dir.join(CA_FILE);
    ClientTlsOptions {
        roots: match &base.roots {
            // A pin is for the first contact alone (P-27.7).
            Roots::Pin(_) | Roots::Insecure => Roots::File(ca),
            more => Roots::And(Box::new(more.clone()), ca),
        },
        identity: Some((file.clone(), file)),
        ..base.clone()
    }
}

impl Identity {
    /// Takes what `dir` keeps into use; `tls` is loaded from it.
    #[must_use]
    pub fn new(dir: PathBuf, known: Known, tls: Arc<ClientTls>, expiry: IntGauge) -> Self {
        let identity = Self {
            dir,
            tls,
            expiry,
            inner: Mutex::new(Inner { known, asked: None }),
        };
        identity.show();
        identity
    }

    fn show(&self) {
        let until = self.inner.lock().known.validity.until_unix_s;
        self.expiry.set(i64::try_from(until).unwrap_or(i64::MAX));
    }

    /// What is in use.
    #[must_use]
    pub fn known(&self) -> Known {
        self.inner.lock().known.clone()
    }

    /// Asks the hub of `carrier` for a new certificate whenever two thirds of the life of the
    /// present one have passed. Ends with the session.
    pub async fn stay_fresh(self: Arc<Self>, carrier: Carrier) {
        loop {
            let validity = self.known().validity;
            let now_s = unix_s();
            let due = Duration::from_secs(validity.renew_at_unix_s().saturating_sub(now_s));
            if !due.is_zero() {
                tokio::select! {
                    () = sleep(due.min(LOOK_MAX)) => continue,
                    _ = carrier.closed() => return,
                }
            }
            if let Err(why) = self.ask(&carrier) {
                tracing::warn!(%why, "no new certificate can be asked for on this session");
                return;
            }
            let left = Duration::from_secs(validity.until_unix_s.saturating_sub(now_s));
            let pause = (left / 10).clamp(ASK_AGAIN_MIN, ASK_AGAIN_MAX);
            tokio::select! {
                () = sleep(pause) => {}
                _ = carrier.closed() => return,
            }
        }
    }

    fn ask(&self, carrier: &Carrier) -> Result<(), String> {
        // One key for all attempts: an answer that comes late is as good.
        let mut inner = self.inner.lock();
        let key = match inner.asked.take() {
            Some(key) => key,
            None => Key::generate().map_err(|why| why.to_string())?,
        };
        let csr = key.request().map_err(|why| why.to_string());
        inner.asked = Some(key);
        drop(inner);
        carrier.renew(csr?).map_err(|why| why.to_string())
    }

    /// The hub sent a certificate, or its CAs alone: keeps them, and shows them from the next
    /// connection on. Whether a certificate came.
    ///
    /// # Errors
    /// [`IdentityError`]; the old ones stay.
    pub fn take(&self, chain: &str, ca_bundle: &str) -> Result<bool, IdentityError> {
        let bundle = read_certificates(ca_bundle).ok_or(CertificateFault::Unreadable)?;
        let bundle = certificates(bundle.iter().map(Vec::as_slice));
        if chain.is_empty() {
            keep_cas(&self.dir, &bundle)?;
        } else {
            self.take_certificate(chain, &bundle)?;
        }
        self.tls.reload()?;
        Ok(!chain.is_empty())
    }

    fn take_certificate(&self, chain: &str, bundle: &str) -> Result<(), IdentityError> {
        let mut inner = self.inner.lock();
        let unasked = IdentityError::Unasked("nobody asked for it");
        let key = inner.asked.as_ref().ok_or(unasked)?;
        let chain = read_certificates(chain).ok_or(CertificateFault::Unreadable)?;
        let known = check(&chain, key)?;
        if known.cluster != inner.known.cluster {
            return Err(IdentityError::Unasked("it is for another cluster"));
        }
        let chain = certificates(chain.iter().map(Vec::as_slice));
        keep(&self.dir, key, &chain, bundle)?;
        inner.known = known;
        inner.asked = None;
        drop(inner);
        self.show();
        Ok(())
    }
}

/// As [`Identity::take`], off the runtime's threads; says what came of it.
pub async fn take_certificate(identity: Arc<Identity>, chain: String, ca_bundle: String) {
    let taken = tokio::task::spawn_blocking(move || {
        let came = identity.take(&chain, &ca_bundle);
        came.map(|came| came.then(|| identity.known().validity.until_unix_s))
    });
    match taken.await {
        Ok(Ok(Some(until_unix_s))) => tracing::info!(
            until_unix_s,
            "new certificate kept; it is shown from the next connection on"
        ),
        Ok(Ok(None)) => tracing::debug!("the hub's agent CAs are kept"),
        Ok(Err(why)) => tracing::error!(
            %why, "what the hub certified cannot be kept; the old certificate stays: look at --state-dir"
        ),
        Err(why) => tracing::error!(%why, "keeping a certificate failed"),
    }
}

pub(crate) fn unix_s() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
