//! Where the API is, and a connection to it.

use std::path::{Path, PathBuf};

use culvert_net::dial::{Dialer, HubUrl, ProxyConfig};
use culvert_net::tls::{ClientTls, ClientTlsOptions, Roots};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

use super::unreachable;
use crate::error::{CliError, Result};

/// Where the API is.
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// Plain, on loopback.
    Tcp(String),
    /// Behind the hub's own address.
    Tls(Box<Tls>),
}

/// How a hub is reached over TLS.
pub struct Tls {
    dialer: Dialer,
    hub: [HubUrl; 1],
    host: String,
}

/// Any connection.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Endpoint {
    /// The API that a text names; `ca` is for `https://`.
    ///
    /// # Errors
    /// When it is of no known form, or the CA cannot be used.
    pub fn new(api: &str, ca: Option<&Path>) -> Result<Self> {
        if let Some(path) = api.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        if let Some(authority) = api.strip_prefix("http://") {
            return Ok(Self::Tcp(authority.trim_end_matches('/').to_owned()));
        }
        let fix = "give --api unix:PATH, --api https://HUB or --api http://127.0.0.1:PORT";
        let form = |why: &str| CliError::usage("the API address is of no known form", why, fix);
        if !api.starts_with("https://") {
            return Err(form(api));
        }
        let hub: HubUrl = api.parse().map_err(|_| form(api))?;
        let options = ClientTlsOptions {
            roots: ca.map_or(Roots::System, |ca| Roots::File(ca.to_owned())),
            alpn: vec![b"http/1.1".to_vec()],
            ..ClientTlsOptions::default()
        };
        let tls = ClientTls::load(options).map_err(|why| {
            let fix = "give a readable --api-ca";
            CliError::usage("the CA of the API cannot be used", why, fix)
        })?;
        Ok(Self::Tls(Box::new(Tls {
            dialer: Dialer::new(Arc::new(tls), ProxyConfig::direct()),
            host: hub.host_header(),
            hub: [hub],
        })))
    }

    /// A connection, and the `Host` that is asked for.
    pub async fn connect(&self) -> Result<(Box<dyn Io>, &str)> {
        match self {
            Self::Unix(socket) => {
                let stream = tokio::net::UnixStream::connect(socket).await;
                let stream = stream.map_err(|why| unreachable(&socket.display(), &why))?;
                Ok((Box::new(stream), "localhost"))
            }
            Self::Tcp(authority) => {
                let stream = tokio::net::TcpStream::connect(authority).await;
                let stream = stream.map_err(|why| unreachable(authority, &why))?;
                Ok((Box::new(stream), authority))
            }
            Self::Tls(tls) => {
                let linked = tls.dialer.link(&tls.hub).await.map_err(|why| {
                    let fix = "check host and port of --api, and --api-ca";
                    let what = "the hub cannot be reached";
                    CliError::new("control_unreachable", what, why, "path", fix)
                })?;
                Ok((Box::new(linked.link), &tls.host))
            }
        }
    }
}
