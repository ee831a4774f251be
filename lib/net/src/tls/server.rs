//! The accepting side: one configuration per listener, replaced whole when a file changes.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::error::TlsError;
use super::fresh::{Content, Fresh, in_time};
use super::verify::BoundedClientVerifier;
use super::{Ahead, MinVersion, Reload, Reloaded, TlsInfo, files, provider, versions};

/// Resumption tickets per handshake.
pub(super) const TICKETS_MAX: usize = 1;

/// An accepted TLS connection.
pub type ServerStream<IO> = tokio_rustls::server::TlsStream<Ahead<IO>>;

/// Who must show a client certificate.
#[derive(Clone, Debug)]
pub struct ClientAuth {
    /// CA certificates (PEM) that sign the clients.
    pub ca: PathBuf,
    /// Whether a client without a certificate is refused.
    pub required: bool,
    /// Also accept RSA keys (up to 4,096 bits). Off: P-256, P-384 and Ed25519 (T23).
    pub rsa: bool,
}

/// The files and rules of one listener.
#[derive(Clone, Debug)]
pub struct ServerTlsOptions {
    /// Certificate chain, PEM, leaf first.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Client certificates; `None` asks for none.
    pub client_auth: Option<ClientAuth>,
    /// Protocols offered by ALPN, most wanted first; empty = no ALPN.
    pub alpn: Vec<Vec<u8>>,
    /// Lowest version.
    pub min_version: MinVersion,
}

/// TLS of one listener. Share it by `Arc`; reload with [`super::keep_fresh`] or [`Reload::reload`].
pub struct ServerTls {
    options: ServerTlsOptions,
    fresh: Fresh<ServerConfig>,
}

impl ServerTls {
    /// Reads and checks all files.
    ///
    /// # Errors
    /// When a file is missing, empty, or not what it must be; the text names it.
    pub fn load(options: ServerTlsOptions) -> Result<ServerTls, TlsError> {
        let fresh = Fresh::new(&Files::read(&options)?)?;
        Ok(ServerTls { options, fresh })
    }

    /// What new connections use now.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.fresh.config()
    }

    /// Does the handshake, within [`super::HANDSHAKE_MAX`].
    ///
    /// # Errors
    /// When the peer is not acceptable, silent, or speaks no TLS.
    pub async fn accept<IO>(&self, io: IO) -> Result<ServerStream<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = TlsAcceptor::from(self.config()).accept(Ahead::new(io));
        in_time(handshake).await
    }

    /// What the handshake of `stream` agreed on.
    #[must_use]
    pub fn info<IO>(stream: &ServerStream<IO>) -> TlsInfo {
        TlsInfo::of(stream.get_ref().1)
    }
}

impl Reload for ServerTls {
    fn paths(&self) -> Vec<PathBuf> {
        let ca = self
            .options
            .client_auth
            .as_ref()
            .map(|auth| auth.ca.clone());
        [self.options.cert.clone(), self.options.key.clone()]
            .into_iter()
            .chain(ca)
            .collect()
    }

    fn reload(&self) -> Result<Reloaded, TlsError> {
        // A new configuration has new ticket keys: a client that an old CA let in cannot resume.
        self.fresh.reload(|| Files::read(&self.options))
    }
}

struct Files<'a> {
    options: &'a ServerTlsOptions,
    cert: zeroize::Zeroizing<Vec<u8>>,
    key: zeroize::Zeroizing<Vec<u8>>,
    client_ca: Option<zeroize::Zeroizing<Vec<u8>>>,
}

impl<'a> Files<'a> {
    fn read(options: &'a ServerTlsOptions) -> Result<Files<'a>, TlsError> {
        Ok(Files {
            options,
            cert: files::read(&options.cert)?,
            key: files::read(&options.key)?,
            client_ca: options
                .client_auth
                .as_ref()
                .map(|a| files::read(&a.ca))
                .transpose()?,
        })
    }
}

impl Content<ServerConfig> for Files<'_> {
    fn digest(&self) -> [u8; 32] {
        let client_ca = self.client_ca.as_deref().map_or(&[][..], |ca| ca);
        crate::crypto::sha256(
            &[&self.cert[..], &self.key[..], client_ca]
                .map(crate::crypto::sha256)
                .concat(),
        )
    }

    fn config(&self) -> Result<ServerConfig, TlsError> {
        let options = self.options;
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions(options.min_version))
            .map_err(|e| TlsError::bad(&options.cert, e))?;
        let builder = match (&options.client_auth, &self.client_ca) {
            (Some(auth), Some(ca)) => {
                let roots = Arc::new(files::roots(&auth.ca, ca)?);
                let inner = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
                let inner = if auth.required {
                    inner
                } else {
                    inner.allow_unauthenticated()
                };
                let inner = inner.build().map_err(|e| TlsError::bad(&auth.ca, e))?;
                builder.with_client_cert_verifier(BoundedClientVerifier::new(inner, auth.rsa))
            }
            _ => builder.with_no_client_auth(),
        };
        let chain = files::certificates(&options.cert, &self.cert)?;
        let key = files::private_key(&options.key, &self.key)?;
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|e| TlsError::bad(&options.cert, format!("does not go with the key: {e}")))?;
        config.alpn_protocols.clone_from(&options.alpn);
        config.send_tls13_tickets = TICKETS_MAX;
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()
            .map_err(|e| TlsError::bad(&options.key, e))?;
        Ok(config)
    }
}
