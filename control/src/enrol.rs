//! Enrolment of agents by certificate: pure decisions about CAs and bootstrap tokens (P-27).

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use culvert_enrol::{Authority, LEAF_LIFE_S_MAX, MakeError};
use culvert_net::crypto;
use culvert_proto::limits::AGENT_CAS_MAX;
use culvert_proto::token::{Digest, TokenText};
use zeroize::Zeroizing;

/// Prefix of bootstrap tokens.
pub const ENROL_PREFIX: &str = "cve_";
/// Life of a bootstrap token, ms: fifteen minutes (P-27.1).
pub const ENROL_TOKEN_LIFE_MS: u64 = 15 * 60_000;
/// Bootstrap tokens that live at once.
pub const ENROL_TOKENS_MAX: u64 = 4_096;
/// Names of the listener of agents.
pub const LISTENER_NAMES_MAX: usize = 32;
/// Longest `ca.crt` in bytes.
const CA_FILE_BYTES_MAX: u64 = 16 << 10;

/// Where a CA stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaState {
    /// Trusted, signs nothing yet.
    Staged,
    /// Signs.
    Signing,
    /// Trusted, signs no more agents.
    Trusted,
}

/// A CA of agents, its key sealed.
#[derive(Clone, PartialEq, Eq)]
pub struct AgentCa {
    /// What it is called: the begin of the hash of its certificate.
    pub id: String,
    /// Where it stands.
    pub state: CaState,
    /// DER.
    pub certificate: Vec<u8>,
    /// Of no use without what sealed it.
    pub sealed_key: Vec<u8>,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// End of the last certificate of an agent that it signed, unix s.
    pub last_unix_s: u64,
}

/// A bootstrap token, by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolToken {
    /// SHA-256 of the text.
    pub digest: Digest,
    /// For whose agent.
    pub cluster: String,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Milliseconds since 1970.
    pub not_after_unix_ms: u64,
}

/// What control was told about enrolment.
pub struct Enrolment {
    /// Life of certificates, s.
    pub life_s: u64,
    /// Names by which agents dial the data planes' listener; empty = its certificate is given.
    pub names: Vec<String>,
    /// Where the first CA is taken from, in place of making one.
    pub ca_dir: Option<PathBuf>,
}

/// Why the CAs are not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaRefused {
    /// One at a time.
    #[error("agent CA {0} is staged already")]
    Staged(String),
    /// There is nothing to promote.
    #[error("no agent CA is staged")]
    NothingStaged,
    /// As many as a snapshot holds.
    #[error("{AGENT_CAS_MAX} agent CAs are trusted already")]
    TooMany,
    /// No such CA.
    #[error("no agent CA {0}")]
    Unknown(String),
    /// It is in use.
    #[error("agent CA {0} signs")]
    Signing(String),
}

/// Why a bootstrap token gives no certificate. For the log alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    /// Nobody minted it, or it was used.
    #[error("the token is unknown, was used, or was forgotten after its end")]
    Unknown,
    /// Past its time.
    #[error("the token is expired")]
    Expired,
    /// Bound to another cluster; it is burnt.
    #[error("the token is for cluster {bound}, the agent asked for {asked:?}; the token is burnt")]
    OtherCluster {
        /// What it was minted for.
        bound: String,
        /// What was asked for, cut.
        asked: String,
    },
    /// The cluster is gone, or another one now.
    #[error("cluster {0} is not the one that the token was minted for any more")]
    ClusterGone(String),
}

impl Default for Enrolment {
    fn default() -> Self {
        Self {
            life_s: LEAF_LIFE_S_MAX,
            names: Vec::new(),
            ca_dir: None,
        }
    }
}

impl CaState {
    const ALL: [Self; 3] = [Self::Staged, Self::Signing, Self::Trusted];

    /// The word in store and API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Signing => "signing",
            Self::Trusted => "trusted",
        }
    }

    /// The state of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// A fresh bootstrap token and what is kept of it.
#[must_use]
pub fn mint(random: [u8; 32]) -> (TokenText, Digest) {
    use base64::Engine as _;
    let digits = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random);
    let text = Zeroizing::new([ENROL_PREFIX, &digits].concat());
    let digest = Digest(crypto::sha256(text.as_bytes()));
    let text = TokenText::new(&text).expect("47 characters are a token");
    (text, digest)
}

/// Whether the token that was taken out is good for an agent of `asked`.
///
/// # Errors
/// [`TokenRefused`].
pub fn admit(
    token: Option<&EnrolToken>,
    asked: &str,
    cluster_since_unix_ms: Option<u64>,
    now_ms: u64,
) -> Result<(), TokenRefused> {
    let token = token.ok_or(TokenRefused::Unknown)?;
    if now_ms >= token.not_after_unix_ms {
        return Err(TokenRefused::Expired);
    }
    if token.cluster != asked {
        return Err(TokenRefused::OtherCluster {
            bound: token.cluster.clone(),
            asked: asked.chars().take(64).collect(),
        });
    }
    match cluster_since_unix_ms {
        Some(since) if since <= token.created_unix_ms => Ok(()),
        _ => Err(TokenRefused::ClusterGone(token.cluster.clone())),
    }
}

/// When a certificate that is made now counts as made: after the revocation before it, since
/// certificates know whole seconds only.
#[must_use]
pub fn issued_at(now_ms: u64, from_unix_s: u64) -> u64 {
    (now_ms / 1000).max(from_unix_s)
}

/// The CAs in the order in which they are published: the one that certifies listeners first. It
/// is the oldest one that is trusted, so that an agent that has not heard of a new one yet still
/// knows its hub.
#[must_use]
pub fn in_order(cas: &[AgentCa]) -> Vec<&AgentCa> {
    let mut all: Vec<&AgentCa> = cas.iter().collect();
    all.sort_by_key(|ca| {
        let place = match ca.state {
            CaState::Trusted => 0,
            CaState::Signing => 1,
            CaState::Staged => 2,
        };
        (place, ca.created_unix_ms)
    });
    all
}

/// The one that signs agents.
#[must_use]
pub fn signing(cas: &[AgentCa]) -> Option<&AgentCa> {
    cas.iter().find(|ca| ca.state == CaState::Signing)
}

/// Whether one more may be staged.
///
/// # Errors
/// [`CaRefused`].
pub fn may_stage(cas: &[AgentCa]) -> Result<(), CaRefused> {
    if let Some(ca) = cas.iter().find(|ca| ca.state == CaState::Staged) {
        return Err(CaRefused::Staged(ca.id.clone()));
    }
    match cas.len() < AGENT_CAS_MAX {
        true => Ok(()),
        false => Err(CaRefused::TooMany),
    }
}

/// The CAs that change when the staged one begins to sign.
///
/// # Errors
/// [`CaRefused::NothingStaged`].
pub fn promoted(cas: &[AgentCa]) -> Result<Vec<AgentCa>, CaRefused> {
    let in_state = |ca: &AgentCa, state| AgentCa {
        state,
        ..ca.clone()
    };
    let staged = cas.iter().find(|ca| ca.state == CaState::Staged);
    let staged = in_state(staged.ok_or(CaRefused::NothingStaged)?, CaState::Signing);
    let before = signing(cas).map(|ca| in_state(ca, CaState::Trusted));
    Ok(before.into_iter().chain([staged]).collect())
}

/// Whether this one may go.
///
/// # Errors
/// [`CaRefused`].
pub fn may_retire(cas: &[AgentCa], id: &str) -> Result<(), CaRefused> {
    let ca = cas.iter().find(|ca| ca.id == id);
    match ca.ok_or_else(|| CaRefused::Unknown(id.to_owned()))?.state {
        CaState::Signing => Err(CaRefused::Signing(id.to_owned())),
        CaState::Staged | CaState::Trusted => Ok(()),
    }
}

/// The one that is trusted for nobody any more: its last certificate has ended.
#[must_use]
pub fn spent(cas: &[AgentCa], now_ms: u64) -> Option<&AgentCa> {
    let over = |ca: &&AgentCa| ca.state == CaState::Trusted && ca.last_unix_s < now_ms / 1000;
    cas.iter().find(over)
}

/// Why `--agent-ca-dir` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaDirError {
    /// One of the two alone.
    #[error("{0} has one of ca.crt and ca.key; give both, or neither and control makes them")]
    Half(PathBuf),
    /// It cannot be read.
    #[error("{path}: {why}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What was seen.
        why: String,
    },
    /// It is no CA.
    #[error("{0}: {1}")]
    Ca(PathBuf, MakeError),
}

/// The CA of `ca.crt` and `ca.key`; none where there is neither.
///
/// # Errors
/// [`CaDirError`]; nothing is made in place of what cannot be used.
pub fn import(dir: &Path) -> Result<Option<Authority>, CaDirError> {
    let (crt, key) = (dir.join("ca.crt"), dir.join("ca.key"));
    let read = |path: &Path| match File::open(path) {
        Ok(file) => {
            let mut text = Zeroizing::new(String::with_capacity(4 << 10));
            let read = file.take(CA_FILE_BYTES_MAX).read_to_string(&mut text);
            read.map(|_| Some(text)).map_err(|why| why.to_string())
        }
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(why.to_string()),
    };
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |why| CaDirError::Read { path, why }
    };
    let certificate = read(&crt).map_err(wrong(&crt))?;
    match (certificate, read(&key).map_err(wrong(&key))?) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Authority::from_pem(&certificate, &key)
            .map(Some)
            .map_err(|why| CaDirError::Ca(dir.to_owned(), why)),
        _ => Err(CaDirError::Half(dir.to_owned())),
    }
}

#[cfg(test)]
mod tests;
