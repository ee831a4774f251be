//! HTTPS requests that control makes: the license server, identity providers, its own
//! data plane. Never to clusters, and no tunnel byte waits for one.

use std::sync::Arc;
use std::time::Duration;

use culvert_net::dial::{Dialer, HubUrl, ProxyConfig};
use culvert_net::tls::ClientTls;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;

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
    /// More than the caller reads.
    #[error("the answer of {host} is longer than {bytes_max} bytes")]
    TooLong {
        /// Who was asked.
        host: String,
        /// Most that is read.
        bytes_max: usize,
    },
    /// It took too long.
    #[error("no answer from {host} within 30 s")]
    Slow {
        /// Who was asked.
        host: String,
    },
}

/// A connection to one host, for requests one after another.
pub struct Conversation {
    url: HubUrl,
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<hyper::Result<()>>,
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
        mut request: Request<Vec<u8>>,
    ) -> Result<Response<Vec<u8>>, OutboundError> {
        let url = askable(&request.uri().to_string())?;
        request
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
        let exchange = async {
            let mut conversation = self.converse(&url).await?;
            conversation.send(request, ANSWER_BYTES_MAX).await
        };
        match tokio::time::timeout(DEADLINE, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(OutboundError::Slow {
                host: url.authority(),
            }),
        }
    }

    /// Connects to the host of `url`; see [`askable`].
    ///
    /// # Errors
    /// [`OutboundError`]. The caller sets the deadline.
    pub async fn converse(&self, url: &HubUrl) -> Result<Conversation, OutboundError> {
        let dialer = self.dialer.as_ref();
        let dialer = dialer.map_err(|why| OutboundError::Dial(why.to_string()))?;
        let conn = dialer.dial(std::slice::from_ref(url)).await;
        let conn = conn.map_err(|why| OutboundError::Dial(why.to_string()))?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(conn.io))
            .await
            .map_err(|why| broken(url, &why))?;
        Ok(Conversation {
            url: url.clone(),
            sender,
            driver: tokio::spawn(connection),
        })
    }
}

impl Conversation {
    /// Sends `request` and reads an answer of at most `bytes_max`.
    ///
    /// # Errors
    /// [`OutboundError`]; then the conversation is over. The caller sets the deadline.
    pub async fn send(
        &mut self,
        request: Request<Vec<u8>>,
        bytes_max: usize,
    ) -> Result<Response<Vec<u8>>, OutboundError> {
        let url = &self.url;
        let request = origin_form(url, request).map_err(|why| broken(url, &why))?;
        let ready = self.sender.ready().await;
        ready.map_err(|why| broken(url, &why))?;
        let answer = self.sender.send_request(request).await;
        let (head, body) = answer.map_err(|why| broken(url, &why))?.into_parts();
        let body = Limited::new(body, bytes_max).collect().await;
        let body = body.map_err(|why| {
            if why.is::<LengthLimitError>() {
                let host = url.authority();
                return OutboundError::TooLong { host, bytes_max };
            }
            broken(url, &why)
        })?;
        Ok(Response::from_parts(head, body.to_bytes().to_vec()))
    }

    /// Whether the other side is still there.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A URL that may be asked: https, or of this machine.
///
/// # Errors
/// [`OutboundError::Url`].
pub fn askable(text: &str) -> Result<HubUrl, OutboundError> {
    let url: HubUrl = text
        .parse()
        .map_err(|_| OutboundError::Url(format!("{text:?} is no https:// URL")))?;
    if url.is_tls() || is_loopback(url.host()) {
        return Ok(url);
    }
    let why = format!("{text:?} is not https; only this machine may be asked without TLS");
    Err(OutboundError::Url(why))
}

fn broken(url: &HubUrl, why: &dyn std::fmt::Display) -> OutboundError {
    OutboundError::Http {
        host: url.authority(),
        why: why.to_string(),
    }
}

/// The request as HTTP/1.1 sends it to the host itself.
fn origin_form(url: &HubUrl, request: Request<Vec<u8>>) -> Result<Request<Full<Bytes>>, String> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = path.parse().map_err(|_| format!("{path:?} is no path"))?;
    let host = HeaderValue::from_str(&url.host_header()).map_err(|why| why.to_string())?;
    head.headers.entry(header::HOST).or_insert(host);
    Ok(Request::from_parts(head, Full::from(body)))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|addr| addr.is_loopback())
}
