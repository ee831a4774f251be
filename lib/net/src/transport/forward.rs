//! A person's connection to a service: `GET /forward/{cluster}/{service}`, upgraded to
//! `culvert-tcp/1`, raw bytes after the 101.

use bytes::Bytes;
use culvert_proto::token::TokenText;
use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::refusal::{ConnectError, Refusal};
use crate::dial::{Dialer, HubUrl, Link, Linked};

/// The protocol that a forward changes to.
pub const FORWARD_PROTOCOL: &str = "culvert-tcp/1";

/// A connection to a service through a hub.
pub struct Forwarded {
    /// Its bytes.
    pub link: Link<TcpStream>,
    /// What the service said already.
    pub first: Bytes,
    /// The hub address that answered.
    pub url: HubUrl,
}

/// Asks the first of `urls` that lets itself be connected to for `path`, with `token`. It answers
/// when the service is connected: there is no deadline here but the dial's.
///
/// # Errors
/// When no hub is reached, or the one that is says no.
pub async fn connect_forward(
    dialer: &Dialer,
    urls: &[HubUrl],
    path: &str,
    token: &TokenText,
) -> Result<Forwarded, ConnectError> {
    let Linked {
        link, url_index, ..
    } = dialer.link(urls).await?;
    let url = urls[url_index].clone();
    let request = request(&url, path, token)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(link))
        .await
        .map_err(|e| ConnectError::no_answer(&e))?;
    let driver = tokio::spawn(connection.with_upgrades());
    let answered = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| ConnectError::no_answer(&e))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ConnectError::Refused(Box::new(
                Refusal::read(response).await,
            )));
        }
        let protocol = response.headers().get(UPGRADE).cloned();
        if protocol.is_none_or(|name| name != FORWARD_PROTOCOL) {
            let text = format!("the 101 does not say Upgrade: {FORWARD_PROTOCOL}");
            return Err(ConnectError::Mangled(text));
        }
        hyper::upgrade::on(response)
            .await
            .map_err(|e| ConnectError::no_answer(&e))
    };
    let upgraded = answered.await.inspect_err(|_| driver.abort())?;
    let parts = upgraded
        .downcast::<TokioIo<Link<TcpStream>>>()
        .map_err(|_| ConnectError::Mangled("the connection changed its type".to_owned()))?;
    Ok(Forwarded {
        link: parts.io.into_inner(),
        first: parts.read_buf,
        url,
    })
}

fn request(
    url: &HubUrl,
    path: &str,
    token: &TokenText,
) -> Result<Request<Empty<Bytes>>, ConnectError> {
    let bad = |e: http::Error| ConnectError::Request(e.to_string());
    let bearer = zeroize::Zeroizing::new(["Bearer ", token.expose()].concat());
    let mut bearer = HeaderValue::from_str(&bearer).map_err(|e| bad(e.into()))?;
    bearer.set_sensitive(true);
    Request::get(path)
        .header(HOST, url.host_header())
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, FORWARD_PROTOCOL)
        .header(AUTHORIZATION, bearer)
        .body(Empty::new())
        .map_err(bad)
}
