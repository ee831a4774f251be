//! The dialling side: whom to trust, and what to show.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::error::TlsError;
use super::fresh::{Content, Fresh, in_time};
use super::verify::{ServerVerifier, SpkiPin, Trust};
use super::{Ahead, MinVersion, Reload, Reloaded, TlsInfo, files, provider, versions};

/// A dialled TLS connection.
pub type ClientStream<IO> = tokio_rustls::client::TlsStream<Ahead<IO>>;

/// Whose certificates are accepted.
#[derive(Clone, Debug)]
pub enum Roots {
    /// The CAs of the operating system.
    System,
    /// The CAs of this PEM file, and no others.
    File(PathBuf),
    /// The CAs of the operating system and of this PEM file.
    SystemAnd(PathBuf),
    /// What the first trusts, and the CAs of this PEM file. The first is no pin.
    And(Box<Roots>, PathBuf),
    /// The certificate whose public key hashes to this, or one that such a CA signed.
    Pin(SpkiPin),
    /// Anything. For upstreams the operator named `--insecure`; never for a hub.
    Insecure,
}

/// The files and rules of a dialler.
#[derive(Clone, Debug)]
pub struct ClientTlsOptions {
    /// Whose certificates are accepted.
    pub roots: Roots,
    /// Our certificate chain and private key (PEM files), if the other side wants one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Protocols offered by ALPN, most wanted first; empty = no ALPN.
    pub alpn: Vec<Vec<u8>>,
    /// Lowest version.
    pub min_version: MinVersion,
}

impl Roots {
    /// Every file of CAs.
    fn files(&self) -> Vec<&PathBuf> {
        match self {
            Roots::File(path) | Roots::SystemAnd(path) => vec![path],
            Roots::And(first, path) => {
                let mut files = first.files();
                files.push(path);
                files
            }
            Roots::System | Roots::Pin(_) | Roots::Insecure => Vec::new(),
        }
    }

    /// Without the files that were added.
    fn base(&self) -> &Roots {
        match self {
            Roots::And(first, _) => first.base(),
            own => own,
        }
    }
}

impl Default for ClientTlsOptions {
    fn default() -> ClientTlsOptions {
        ClientTlsOptions {
            roots: Roots::System,
            identity: None,
            alpn: Vec::new(),
            min_version: MinVersion::Tls12,
        }
    }
}

/// TLS of a dialler. Share it by `Arc`; reload with [`super::keep_fresh`] or [`Reload::reload`].
pub struct ClientTls {
    options: ClientTlsOptions,
    fresh: Fresh<ClientConfig>,
}

impl ClientTls {
    /// Reads and checks all files.
    ///
    /// # Errors
    /// When a file is missing, empty, or not what it must be, or the system has no CAs.
    pub fn load(options: ClientTlsOptions) -> Result<ClientTls, TlsError> {
        let fresh = Fresh::new(&Files::read(&options)?)?;
        Ok(ClientTls { options, fresh })
    }

    /// What new connections use now.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        self.fresh.config()
    }

    /// Does the handshake with the host called `name`, within 10 s.
    ///
    /// # Errors
    /// When the certificate is not acceptable (issuer and key hash are named), or no TLS is spoken.
    pub async fn connect<IO>(&self, name: &str, io: IO) -> Result<ClientStream<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let server_name = server_name(name)?;
        let handshake = TlsConnector::from(self.config()).connect(server_name, Ahead::new(io));
        in_time(handshake).await
    }

    /// As [`ClientTls::connect`], offering `alpn` alone in place of the configured protocols.
    ///
    /// # Errors
    /// As there.
    pub async fn connect_alpn<IO>(
        &self,
        name: &str,
        alpn: &[u8],
        io: IO,
    ) -> Result<ClientStream<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let server_name = server_name(name)?;
        let connector = TlsConnector::from(self.config());
        let connector = connector.with_alpn(vec![alpn.to_vec()]);
        in_time(connector.connect(server_name, Ahead::new(io))).await
    }

    /// What the handshake of `stream` agreed on.
    #[must_use]
    pub fn info<IO>(stream: &ClientStream<IO>) -> TlsInfo {
        TlsInfo::of(stream.get_ref().1)
    }
}

impl Reload for ClientTls {
    fn paths(&self) -> Vec<PathBuf> {
        let roots = self.options.roots.files().into_iter().cloned();
        let identity = self.options.identity.clone().map(|(cert, key)| [cert, key]);
        roots.chain(identity.into_iter().flatten()).collect()
    }

    fn reload(&self) -> Result<Reloaded, TlsError> {
        self.fresh.reload(|| Files::read(&self.options))
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))
}

struct Files<'a> {
    options: &'a ClientTlsOptions,
    roots: Vec<Zeroizing<Vec<u8>>>,
    identity: Option<[Zeroizing<Vec<u8>>; 2]>,
}

impl<'a> Files<'a> {
    fn read(options: &'a ClientTlsOptions) -> Result<Files<'a>, TlsError> {
        let roots = options.roots.files().into_iter();
        let roots = roots
            .map(|path| files::read(path))
            .collect::<Result<_, _>>()?;
        let identity = match &options.identity {
            Some((cert, key)) => Some([files::read(cert)?, files::read(key)?]),
            None => None,
        };
        Ok(Files {
            options,
            roots,
            identity,
        })
    }

    fn verifier(&self) -> Result<Arc<ServerVerifier>, TlsError> {
        let judge = |trust| Arc::new(ServerVerifier::new(trust, provider()));
        let mut store = RootCertStore::empty();
        for (path, content) in self.options.roots.files().into_iter().zip(&self.roots) {
            store.extend(files::roots(path, content)?.roots);
        }
        match self.options.roots.base() {
            Roots::Pin(pin) => return Ok(judge(Trust::Pin(*pin))),
            Roots::Insecure => return Ok(judge(Trust::Anyone)),
            Roots::System | Roots::SystemAnd(_) => match system_roots() {
                Ok(system) => store.extend(system.roots),
                Err(why) if store.is_empty() => return Err(why),
                Err(_) => {}
            },
            Roots::File(_) | Roots::And(..) => {}
        }
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider())
            .build()
            .map_err(|e| TlsError::Handshake(e.to_string()))?;
        Ok(judge(Trust::Roots(inner)))
    }
}

impl Content<ClientConfig> for Files<'_> {
    fn digest(&self) -> [u8; 32] {
        let mut parts = Vec::with_capacity(96);
        for part in self.roots.iter().chain(self.identity.iter().flatten()) {
            parts.extend_from_slice(&crate::crypto::sha256(part));
        }
        crate::crypto::sha256(&parts)
    }

    fn config(&self) -> Result<ClientConfig, TlsError> {
        let options = self.options;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions(options.min_version))
            .map_err(|e| TlsError::Handshake(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier()?);
        let mut config = match (&options.identity, &self.identity) {
            (Some((cert_path, key_path)), Some([cert, key])) => builder
                .with_client_auth_cert(
                    files::certificates(cert_path, cert)?,
                    files::private_key(key_path, key)?,
                )
                .map_err(|e| TlsError::bad(cert_path, format!("does not go with the key: {e}")))?,
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&options.alpn);
        Ok(config)
    }
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() {
        Err(TlsError::NoSystemRoots)
    } else {
        Ok(store)
    }
}
