//! The first contact: a bootstrap token is changed for a certificate.

use std::time::Duration;

use bytes::Bytes;
use culvert_enrol::{Key, MakeError};
use culvert_net::dial::{DialError, Dialer, HubUrl};
use culvert_net::tls::ClientTlsOptions;
use culvert_proto::id::ClusterId;
use culvert_proto::token::TokenText;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The request and its answer.
const ANSWER_MAX: Duration = Duration::from_secs(20);
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Longest wait that a hub may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// What an agent has before it has a certificate. No `Debug`: it holds the token.
pub struct Bootstrap {
    /// Good once.
    pub token: TokenText,
    /// Whose agent it becomes.
    pub cluster: ClusterId,
    /// Where it registers.
    pub url: HubUrl,
    /// Whom it trusts there: a pin replaces the chain.
    pub tls: ClientTlsOptions,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The hub cannot be reached, or is not trusted.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The key or the request cannot be made.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// The token gives no certificate, now or ever.
    #[error(
        "{url} rejected the registration: the bootstrap token was used, expired, or is for \
         another cluster; make a new join string: culvert agent command CLUSTER --mtls"
    )]
    Rejected {
        /// Who said so.
        url: String,
    },
    /// Another answer.
    #[error("{url} answered {status} {text}")]
    Answer {
        /// Who.
        url: String,
        /// The status.
        status: u16,
        /// What it said, cut.
        text: String,
        /// When to come back.
        retry_after: Option<Duration>,
    },
    /// The connection broke.
    #[error("{url}: {why}")]
    Broken {
        /// Whose.
        url: String,
        /// What was seen.
        why: String,
    },
}

/// What came for the token.
pub struct Registered {
    /// The key that the certificate is for.
    pub key: Key,
    /// PEM.
    pub chain: String,
    /// PEM.
    pub ca_bundle: String,
}

#[derive(Serialize)]
struct Body<'a> {
    token: &'a str,
    cluster: &'a str,
    csr: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    cert: String,
    ca_bundle: String,
}

impl RegisterError {
    /// Whether another try may help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Rejected { .. } | Self::Make(_) => true,
            Self::Answer { status, .. } => *status == 400,
            Self::Dial(_) | Self::Broken { .. } => false,
        }
    }

    /// When the hub wants to be asked again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answer { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Registers once; `dialer` trusts what [`Bootstrap::tls`] says.
///
/// # Errors
/// [`RegisterError`].
pub async fn register(dialer: &Dialer, with: &Bootstrap) -> Result<Registered, RegisterError> {
    let key = Key::generate().map_err(MakeError::from)?;
    let csr = key.request().map_err(MakeError::from)?;
    let asked = tokio::time::timeout(ANSWER_MAX, ask(dialer, with, &csr)).await;
    let late = |_| broken(with, &"no answer within 20 s");
    let answer = asked.map_err(late)??;
    Ok(Registered {
        key,
        chain: answer.cert,
        ca_bundle: answer.ca_bundle,
    })
}

fn broken(with: &Bootstrap, why: &dyn std::fmt::Display) -> RegisterError {
    RegisterError::Broken {
        url: with.url.to_string(),
        why: why.to_string(),
    }
}

async fn ask(dialer: &Dialer, with: &Bootstrap, csr: &[u8]) -> Result<Answer, RegisterError> {
    let conn = dialer.dial(std::slice::from_ref(&with.url)).await?;
    let body = Body {
        token: with.token.expose(),
        cluster: with.cluster.as_str(),
        csr: culvert_enrol::base64(csr),
    };
    let body = Zeroizing::new(serde_json::to_vec(&body).map_err(|why| broken(with, &why))?);
    let request = Request::post(with.url.path())
        .header(HOST, with.url.host_header())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::copy_from_slice(&body)))
        .map_err(|why| broken(with, &why))?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(conn.io)).await;
    let (mut sender, connection) = shaken.map_err(|why| broken(with, &why))?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await;
    let answer = match response {
        Ok(response) => read(with, response).await,
        Err(why) => Err(broken(with, &why)),
    };
    connection.abort();
    answer
}

async fn read(with: &Bootstrap, response: Response<Incoming>) -> Result<Answer, RegisterError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|why| broken(with, &why))?.to_bytes();
    let url = with.url.to_string();
    match head.status.as_u16() {
        200 | 201 => serde_json::from_slice(&body).map_err(|why| broken(with, &why)),
        401 => Err(RegisterError::Rejected { url }),
        status => {
            let after = head
                .headers
                .get(RETRY_AFTER)
                .and_then(|it| it.to_str().ok());
            let after = after.and_then(|text| text.trim().parse().ok());
            let text = String::from_utf8_lossy(&body);
            let text = text.chars().filter(|c| !c.is_control()).take(200);
            Err(RegisterError::Answer {
                url,
                status,
                text: text.collect(),
                retry_after: after.map(|s| Duration::from_secs(s).min(RETRY_AFTER_MAX)),
            })
        }
    }
}
