//! The agent's side: from hub addresses to an open session (W-7 "Open").

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_proto::hello::{AgentHello, CarrierKind, HelloAnswer, header, request_headers};
use culvert_proto::limits::UPGRADE_TIMEOUT_MS;
use culvert_proto::token::TokenText;
use http::header::{AUTHORIZATION, CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::choice::Sign;
use super::refusal::{ConnectError, Refusal};
use super::{End, Transport, WebSocket, rewound, websocket_accept};
use crate::dial::{Conn, Dialer, HubUrl, attempt_order};
use crate::hangup::Hangup;
use crate::look::Look;
use crate::tls::TlsInfo;

/// How long a cancelled request waits for its connection to say why.
const CAUSE_MAX: Duration = Duration::from_secs(1);

/// From the request to the hub's answer.
pub const UPGRADE_MAX: Duration = Duration::from_millis(UPGRADE_TIMEOUT_MS);

/// An accepted session, before its carrier runs.
pub struct AgentConn {
    /// Bytes of the session.
    pub io: Box<dyn Transport>,
    /// For the carrier's configuration: resets the TCP connection.
    pub hangup: Hangup,
    /// For whoever counts connections: looks at the TCP connection.
    pub look: Look,
    /// What the hub granted: kind, epoch, capabilities, beat.
    pub answer: HelloAnswer,
    /// The hub address that answered.
    pub url: HubUrl,
    /// The TCP connection's address: the hub's, or the proxy's.
    pub peer: SocketAddr,
    /// The proxy in between, without credentials.
    pub proxy: Option<String>,
    /// What TLS agreed on; `None` on plain `ws`.
    pub tls: Option<TlsInfo>,
}

/// Opens a session with the first of `urls` that takes one, in the order of [`attempt_order`].
/// Offers `culvert/1, websocket`; where a
/// box on the way shows that it does not let that through it asks again for `websocket` alone, and
/// remembers that for an hour when it helped. `token` is absent when the client certificate is the identity.
///
/// # Errors
/// When no hub takes the session; the error says which step failed, on whose side, and when to ask
/// again. Only a 401 blames the token.
pub async fn connect_agent(
    dialer: &Dialer,
    urls: &[HubUrl],
    hello: &AgentHello,
    token: Option<&TokenText>,
) -> Result<AgentConn, ConnectError> {
    let random = || u64::from_ne_bytes(crate::crypto::random_bytes());
    let order = attempt_order(urls, random);
    let mut left: Vec<HubUrl> = order.into_iter().map(|place| urls[place].clone()).collect();
    loop {
        let conn = dialer.dial(&left).await?;
        let url = left.remove(conn.url_index);
        let error = match at_hub(dialer, conn, &url, hello, token).await {
            Ok(conn) => return Ok(conn),
            Err(error) => error,
        };
        // The hubs share what they know: a refusal of the credential is one for all.
        if left.is_empty() || error.is_final() {
            return Err(error);
        }
        tracing::warn!(hub = %url, %error, "trying the next hub address");
    }
}

async fn at_hub(
    dialer: &Dialer,
    conn: Conn,
    url: &HubUrl,
    hello: &AgentHello,
    token: Option<&TokenText>,
) -> Result<AgentConn, ConnectError> {
    // culvert/1 is for TLS 1.3; what ends in an older box gets WebSocket.
    if conn.tls.as_ref().is_some_and(|tls| !tls.is_tls13) {
        return upgrade(conn, url, hello, token, true).await;
    }
    let choices = &dialer.choices;
    if choices.lock().is_websocket_only(url, dialer.now_ms()) {
        return websocket(dialer, conn, url, hello, token, None).await;
    }
    let error = match upgrade(conn, url, hello, token, false).await {
        Ok(conn) => {
            if conn.answer.kind == CarrierKind::Native {
                choices.lock().raw_passed(url);
            }
            return Ok(conn);
        }
        Err(error) => error,
    };
    let Some(sign) = error.sign() else {
        return Err(error);
    };
    choices.lock().raw_failed(url, sign);
    if sign == Sign::Ended {
        return Err(error);
    }
    tracing::info!(hub = %url, %error, "the raw upgrade did not come through: asking for websocket");
    let conn = dialer.dial(std::slice::from_ref(url)).await?;
    websocket(dialer, conn, url, hello, token, Some(sign)).await
}

/// Asks for WebSocket alone and notes whether that helped.
async fn websocket(
    dialer: &Dialer,
    conn: Conn,
    url: &HubUrl,
    hello: &AgentHello,
    token: Option<&TokenText>,
    sign: Option<Sign>,
) -> Result<AgentConn, ConnectError> {
    let result = upgrade(conn, url, hello, token, true).await;
    let mut choices = dialer.choices.lock();
    match &result {
        Ok(_) => choices.websocket_passed(url, sign, dialer.now_ms()),
        Err(_) => choices.websocket_failed(url),
    }
    drop(choices);
    result
}

async fn upgrade(
    conn: Conn,
    url: &HubUrl,
    hello: &AgentHello,
    token: Option<&TokenText>,
    websocket_only: bool,
) -> Result<AgentConn, ConnectError> {
    let key = STANDARD.encode(crate::crypto::random_bytes::<16>());
    let request = request(url, hello, token, &key, websocket_only)?;
    let Conn {
        io,
        hangup,
        look,
        peer,
        proxy,
        tls,
        ..
    } = conn;
    let exchange = exchange(io, request, hello, &key);
    match tokio::time::timeout(UPGRADE_MAX, exchange).await {
        Ok(Ok((io, answer))) => Ok(AgentConn {
            io,
            hangup,
            look,
            answer,
            url: url.clone(),
            peer,
            proxy,
            tls,
        }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ConnectError::Silent {
            url: url.to_string(),
        }),
    }
}

fn request(
    url: &HubUrl,
    hello: &AgentHello,
    token: Option<&TokenText>,
    key: &str,
    websocket_only: bool,
) -> Result<Request<Empty<bytes::Bytes>>, ConnectError> {
    let bad = |e: http::Error| ConnectError::Request(e.to_string());
    let mut builder = Request::get(url.path()).header(HOST, url.host_header());
    for (name, value) in request_headers(hello, key, websocket_only) {
        builder = builder.header(name, value);
    }
    if let Some(token) = token {
        let bearer = zeroize::Zeroizing::new(["Bearer ", token.expose()].concat());
        let mut bearer = HeaderValue::from_str(&bearer).map_err(|e| bad(e.into()))?;
        bearer.set_sensitive(true);
        builder = builder.header(AUTHORIZATION, bearer);
    }
    builder.body(Empty::new()).map_err(bad)
}

async fn exchange(
    io: Box<dyn Transport>,
    request: Request<Empty<bytes::Bytes>>,
    hello: &AgentHello,
    key: &str,
) -> Result<(Box<dyn Transport>, HelloAnswer), ConnectError> {
    // Some boxes know header names in one case only.
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|e| ConnectError::no_answer(&e))?;
    let mut task = AbortOnDrop(tokio::spawn(connection.with_upgrades()));
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        Err(seen) => return Err(ConnectError::no_answer(&task.cause(seen).await)),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(ConnectError::Refused(Box::new(
            Refusal::read(response).await,
        )));
    }
    let answer = check_answer(&response, hello, key)?;
    let upgraded = hyper::upgrade::on(response)
        .await
        .map_err(|e| ConnectError::no_answer(&e))?;
    drop(task);
    let parts = upgraded
        .downcast::<TokioIo<Box<dyn Transport>>>()
        .map_err(|_| ConnectError::Mangled("the connection changed its type".to_owned()))?;
    let io = rewound(parts.read_buf, parts.io.into_inner());
    let io: Box<dyn Transport> = match answer.kind {
        CarrierKind::Native => io,
        CarrierKind::WebSocket | CarrierKind::Radar => Box::new(WebSocket::new(io, End::Client)),
    };
    Ok((io, answer))
}

fn check_answer(
    response: &Response<Incoming>,
    hello: &AgentHello,
    key: &str,
) -> Result<HelloAnswer, ConnectError> {
    let mangled = |text: &str| ConnectError::Mangled(text.to_owned());
    let headers = response.headers();
    let pairs = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()));
    let answer =
        HelloAnswer::parse(hello.caps, pairs).map_err(|e| ConnectError::Mangled(e.to_string()))?;
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    let is_upgrade = text(&CONNECTION).is_some_and(|list| {
        list.split(',')
            .any(|t| t.trim().eq_ignore_ascii_case("upgrade"))
    });
    if !is_upgrade || headers.get_all(UPGRADE).iter().count() != 1 {
        return Err(mangled(
            "the 101 has no Connection: Upgrade, or several Upgrade fields",
        ));
    }
    if answer.kind == CarrierKind::WebSocket {
        if text(&SEC_WEBSOCKET_ACCEPT) != Some(websocket_accept(key).as_str()) {
            return Err(mangled(
                "the 101's Sec-WebSocket-Accept does not answer our key",
            ));
        }
        if headers.contains_key(http::header::SEC_WEBSOCKET_EXTENSIONS) {
            return Err(mangled(
                "the 101 names a WebSocket extension; none was offered",
            ));
        }
    }
    Ok(answer)
}

struct AbortOnDrop(tokio::task::JoinHandle<hyper::Result<()>>);

impl AbortOnDrop {
    /// A request that was cancelled says nothing; the connection knows why, such as a TLS alert.
    async fn cause(&mut self, seen: hyper::Error) -> hyper::Error {
        match tokio::time::timeout(CAUSE_MAX, &mut self.0).await {
            Ok(Ok(Err(cause))) if seen.is_canceled() => cause,
            _ => seen,
        }
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The hub's reason in a refusal, if the refusal is a hub's.
pub(super) fn error_header(response: &Response<Incoming>) -> Option<&str> {
    response
        .headers()
        .get(header::ERROR)
        .and_then(|v| v.to_str().ok())
}
