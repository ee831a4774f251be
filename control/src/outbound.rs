//! HTTPS requests that control makes: the license server, identity providers.
//! Never to clusters, and no tunnel byte waits for one.

use std::sync::Arc;
use std::time::Duration;

use culvert_net::dial::{Dialer, HubUrl, ProxyConfig};
use culvert_net::tls::ClientTls;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

/// One exchange, the dial included, takes no longer.
const DEADLINE: Duration = Duration::from_secs(30);
/// Longest answer that is read, in bytes.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The URL cannot be asked.
    #[error("{0}")]
    Url(String),
    /// Nobody answers there.
    #[error("cannot connect: {0}")]
    Dial(String),
    /// HTTP went wrong.
    #[error("no usable answer from {host}: {why}")]
    Http {
        /// Who was asked.
        host: String,
        /// What was seen.
        why: String,
    },
    /// It took too long.
    #[error("no answer from {host} within 30 s")]
    Slow {
        /// Who was asked.
        host: String,
    },
}

/// Makes requests, through the proxy where one applies. Follows no redirect.
#[derive(Clone)]
pub struct Outbound {
    /// Or why nobody can be asked.
    dialer: Result<Arc<Dialer>, Arc<str>>,
}

impl Outbound {
    /// Trusts what `tls` trusts.
    #[must_use]
    pub fn new(tls: Arc<ClientTls>, proxy: ProxyConfig) -> Self {
        Self {
            dialer: Ok(Arc::new(Dialer::new(tls, proxy))),
        }
    }

    /// Asks nobody: there is nobody to trust.
    #[must_use]
    pub fn without_trust(why: String) -> Self {
        Self {
            dialer: Err(why.into()),
        }
    }

    /// Sends `request`, whose URI is absolute, and reads the answer to its end.
    ///
    /// # Errors
    /// [`OutboundError`].
    pub async fn send(
        &self,
        request: Request<Vec<u8>>,
    ) -> Result<Response<Vec<u8>>, OutboundError> {
        let uri = request.uri().to_string();
        let url: HubUrl = uri
            .parse()
            .map_err(|_| OutboundError::Url(format!("{uri:?} is no https:// URL")))?;
        if !url.is_tls() && !is_loopback(url.host()) {
            let why = format!("{uri:?} is not https; only this machine may be asked without TLS");
            return Err(OutboundError::Url(why));
        }
        let host = url.authority();
        match tokio::time::timeout(DEADLINE, self.exchange(&url, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(OutboundError::Slow { host }),
        }
    }

    async fn exchange(
        &self,
        url: &HubUrl,
        request: Request<Vec<u8>>,
    ) -> Result<Response<Vec<u8>>, OutboundError> {
        let dialer = self.dialer.as_ref();
        let dialer = dialer.map_err(|why| OutboundError::Dial(why.to_string()))?;
        let conn = dialer.dial(std::slice::from_ref(url)).await;
        let conn = conn.map_err(|why| OutboundError::Dial(why.to_string()))?;
        let broken = |why: String| OutboundError::Http {
            host: url.authority(),
            why,
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(conn.io))
            .await
            .map_err(|why| broken(why.to_string()))?;
        let driver = tokio::spawn(connection);
        let request = origin_form(url, request).map_err(broken)?;
        let answer = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((head, body.to_bytes()))
        };
        let answer = answer.await.map_err(|why| broken(why.to_string()));
        driver.abort();
        let (head, body) = answer?;
        Ok(Response::from_parts(head, body.to_vec()))
    }
}

/// The request as HTTP/1.1 sends it to the host itself.
fn origin_form(url: &HubUrl, request: Request<Vec<u8>>) -> Result<Request<Full<Bytes>>, String> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = path.parse().map_err(|_| format!("{path:?} is no path"))?;
    let host = HeaderValue::from_str(&url.host_header()).map_err(|why| why.to_string())?;
    head.headers.insert(header::HOST, host);
    head.headers
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(Request::from_parts(head, Full::from(body)))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|addr| addr.is_loopback())
}
