//! TLS from end to end between the bridge and the broker of a pair, through whatever lies between.
//!
//! TLS 1.3 only. Both show a certificate that chains to exactly one CA, held in memory; nobody's
//! name is looked at, for the CA is the name: the SHA-256 of its DER is the pair's info hash. The
//! bridge is the server and needs the usage serverAuth, the broker the client and needs clientAuth.
//! [`PairTls::boot`] is the form before there are certificates: each side shows a key of its own and the
//! caller judges the other's.

mod boot;
mod error;
mod identity;
mod stream;
mod verify;

use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{Ahead, HANDSHAKE_MAX, MinVersion, provider, versions};
use crate::relay::End;
use verify::{PeerVerifier, Trust};

pub use error::{PairTlsError, Refused, explain};
pub use identity::{IdentityError, PairIdentity};
pub use stream::PairStream;

/// Certificates that a peer may show, leaf included.
pub const CHAIN_MAX: usize = 5;
/// What the broker's ClientHello would call the bridge; it is neither sent nor looked at.
const NO_NAME: &str = "pair.invalid";

/// Which end of the pair this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Has the target; the TLS server.
    Bridge,
    /// Has the listener; the TLS client.
    Broker,
}

impl Side {
    /// The side at the other end.
    #[must_use]
    pub fn other(self) -> Side {
        match self {
            Side::Bridge => Side::Broker,
            Side::Broker => Side::Bridge,
        }
    }

    /// The word in logs and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Bridge => "bridge",
            Side::Broker => "broker",
        }
    }
}

/// End-to-end TLS of one side. Cheap to clone.
#[derive(Clone)]
pub struct PairTls {
    side: Side,
    config: Config,
}

#[derive(Clone)]
enum Config {
    Server(Arc<ServerConfig>),
    Client(Arc<ClientConfig>),
}

impl PairTls {
    /// The side that has the target. `alpns` is what it speaks, most wanted first.
    ///
    /// # Errors
    /// When key and certificate do not belong together.
    pub fn bridge(identity: &PairIdentity, alpns: &[&[u8]]) -> Result<PairTls, IdentityError> {
        PairTls::new(Side::Bridge, identity, alpns)
    }

    /// The side that has the listener.
    ///
    /// # Errors
    /// As [`PairTls::bridge`].
    pub fn broker(identity: &PairIdentity, alpns: &[&[u8]]) -> Result<PairTls, IdentityError> {
        PairTls::new(Side::Broker, identity, alpns)
    }

    /// Either side.
    ///
    /// # Errors
    /// As [`PairTls::bridge`].
    pub fn new(
        side: Side,
        identity: &PairIdentity,
        alpns: &[&[u8]],
    ) -> Result<PairTls, IdentityError> {
        let trust = Trust::Authority {
            roots: identity.roots()?,
            peer: side.other(),
        };
        let shown = (identity.chain(), identity.key());
        PairTls::with(side, trust, shown, alpns)
    }

    fn with(
        side: Side,
        trust: Trust,
        (chain, key): identity::Shown,
        alpns: &[&[u8]],
    ) -> Result<PairTls, IdentityError> {
        let provider = provider();
        let verifier = Arc::new(PeerVerifier::new(trust, provider.clone()));
        let versions = versions(MinVersion::Tls13);
        let unusable = |why: rustls::Error| IdentityError::Unusable(why.to_string());
        let alpns: Vec<Vec<u8>> = alpns.iter().map(|alpn| alpn.to_vec()).collect();
        let config = match side {
            Side::Bridge => {
                let mut config = ServerConfig::builder_with_provider(provider)
                    .with_protocol_versions(versions)
                    .map_err(unusable)?
                    .with_client_cert_verifier(verifier)
                    .with_single_cert(chain, key)
                    .map_err(unusable)?;
                config.alpn_protocols = alpns;
                // Nobody resumes: each pair proves its certificates anew.
                config.send_tls13_tickets = 0;
                config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
                Config::Server(Arc::new(config))
            }
            Side::Broker => {
                let mut config = ClientConfig::builder_with_provider(provider)
                    .with_protocol_versions(versions)
                    .map_err(unusable)?
                    .dangerous()
                    .with_custom_certificate_verifier(verifier)
                    .with_client_auth_cert(chain, key)
                    .map_err(unusable)?;
                config.alpn_protocols = alpns;
                config.resumption = Resumption::disabled();
                config.enable_sni = false;
                Config::Client(Arc::new(config))
            }
        };
        Ok(PairTls { side, config })
    }

    /// Which side this is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// Does this side's part of the handshake, within [`HANDSHAKE_MAX`]. A broker whose certificate
    /// the bridge refuses learns that at its first read: see [`explain`].
    ///
    /// # Errors
    /// When the peer is not acceptable, silent, speaks no TLS or nothing that was offered.
    pub async fn handshake<IO: End>(&self, io: IO) -> Result<PairStream<IO>, PairTlsError> {
        let io = Ahead::new(io);
        let handshake = async {
            Ok::<_, io::Error>(match &self.config {
                Config::Server(config) => {
                    TlsStream::from(TlsAcceptor::from(config.clone()).accept(io).await?)
                }
                Config::Client(config) => {
                    let name = ServerName::try_from(NO_NAME).map_err(io::Error::other)?;
                    TlsStream::from(TlsConnector::from(config.clone()).connect(name, io).await?)
                }
            })
        };
        match tokio::time::timeout(HANDSHAKE_MAX, handshake).await {
            Ok(Ok(stream)) => {
                let stream = PairStream::new(stream);
                match stream.alpn() {
                    Some(_) => Ok(stream),
                    None => Err(PairTlsError::Protocol),
                }
            }
            Ok(Err(why)) => Err(explain(&why)),
            Err(_) => Err(PairTlsError::Silent(HANDSHAKE_MAX)),
        }
    }
}

#[cfg(test)]
mod tests;
