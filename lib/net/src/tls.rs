//! TLS for every leg: rustls on aws-lc-rs, 1.2 at least, files reloaded without losing a session.
//!
//! Policy hangs on the listener, never on SNI. A missing, unreadable or empty file is an error that
//! names it: authentication is never weakened by accident (security.md T22).

mod agents;
mod ahead;
mod client;
pub mod dev;
mod error;
mod files;
mod fresh;
mod greeting;
pub mod pair;
mod server;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::{CipherSuite, ProtocolVersion, SupportedProtocolVersion};

pub use agents::{AgentsTls, Shown};
pub use ahead::Ahead;
pub use client::{ClientStream, ClientTls, ClientTlsOptions, Roots};
pub use error::{Problem, SeenCertificate, TlsError};
pub use greeting::{Alert, Greeting, GreetingError, HELLO_BYTES_MAX, read_greeting};
pub use rustls::pki_types::CertificateDer;
pub use server::{ClientAuth, ServerStream, ServerTls, ServerTlsOptions};
pub use verify::{PinParseError, SpkiPin, spki_sha256};

/// Absolute deadline of a handshake, on either side.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Lowest version a listener or dialler accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinVersion {
    /// TLS 1.2 or 1.3.
    #[default]
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

/// What a finished handshake agreed on.
#[derive(Clone, Debug)]
pub struct TlsInfo {
    /// Whether it is TLS 1.3.
    pub is_tls13: bool,
    /// The protocol chosen by ALPN.
    pub alpn: Option<Vec<u8>>,
    /// The peer's certificates, leaf first; empty when it showed none.
    pub peer_certificates: Vec<CertificateDer<'static>>,
}

impl TlsInfo {
    pub(crate) fn of(connection: &rustls::CommonState) -> TlsInfo {
        TlsInfo {
            is_tls13: connection.protocol_version() == Some(ProtocolVersion::TLSv1_3),
            alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
            peer_certificates: connection
                .peer_certificates()
                .map(|chain| chain.iter().map(|c| c.clone().into_owned()).collect())
                .unwrap_or_default(),
        }
    }
}

/// Something whose files can be read again.
pub trait Reload: Send + Sync {
    /// The files it is made of.
    fn paths(&self) -> Vec<std::path::PathBuf>;

    /// Reads the files; when their content changed, new connections use it. Sessions live on.
    ///
    /// # Errors
    /// When a file is bad: then nothing changes.
    fn reload(&self) -> Result<Reloaded, TlsError>;
}

/// What a reload did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// The content is what it was.
    Unchanged,
    /// New connections use the new content.
    Changed,
}

/// Keeps `tls` up to date: watches the directories of its files and compares their content every
/// 60 s. `report` hears of every change and every refusal. Runs until dropped.
pub async fn keep_fresh(tls: Arc<dyn Reload>, mut report: impl FnMut(Result<(), TlsError>) + Send) {
    let paths = tls.paths();
    crate::watch::watch(&paths, || match tls.reload() {
        Ok(Reloaded::Unchanged) => {}
        Ok(Reloaded::Changed) => report(Ok(())),
        Err(error) => report(Err(error)),
    })
    .await;
}

/// AES-128 goes first: its records cost 5 to 8 % less than those of AES-256.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    let first = CipherSuite::TLS13_AES_128_GCM_SHA256;
    let suites = &mut provider.cipher_suites;
    suites.sort_by_key(|suite| suite.suite() != first);
    Arc::new(provider)
}

fn versions(min: MinVersion) -> &'static [&'static SupportedProtocolVersion] {
    static NEWEST_FIRST: [&SupportedProtocolVersion; 2] =
        [&rustls::version::TLS13, &rustls::version::TLS12];
    match min {
        MinVersion::Tls12 => &NEWEST_FIRST,
        MinVersion::Tls13 => &NEWEST_FIRST[..1],
    }
}
