//! One request to the hub's API, on a connection of its own.

use std::time::Duration;

use bytes::Bytes;
use culvert_net::dial::{Dialer, HubUrl};
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::timeout;

/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// From the open connection to the whole answer.
const DEADLINE: Duration = Duration::from_secs(15);
/// Longest wait that a hub may ask for.
const RETRY_AFTER_MAX: u64 = 120;

/// How the hub is reached.
pub struct Call<'a> {
    pub dialer: &'a Dialer,
    pub hubs: &'a [HubUrl],
}

/// What the hub said.
pub struct Answer {
    pub status: u16,
    /// Null where it is no JSON.
    pub body: Value,
    pub retry_after: Option<u64>,
}

/// No answer, in one sentence.
#[derive(Debug)]
pub struct Failure(pub String);

impl Answer {
    /// In the hub's words, as far as it has some.
    pub fn seen(&self) -> String {
        let words = ["title", "seen"].map(|field| self.body[field].as_str());
        match words {
            [Some(title), Some(seen)] => {
                format!(
                    "{}, {}: {}",
                    self.status,
                    title.escape_debug(),
                    seen.escape_debug()
                )
            }
            _ => self.status.to_string(),
        }
    }
}

impl Call<'_> {
    /// Asks; `secret` goes along as bearer.
    pub async fn json(
        &self,
        method: Method,
        path: &str,
        secret: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        let failed = |why: &dyn std::fmt::Display| Failure(why.to_string());
        let linked = self
            .dialer
            .link(self.hubs)
            .await
            .map_err(|why| failed(&why))?;
        let hub = &self.hubs[linked.url_index];
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, hub.host_header())
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close");
        if let Some(secret) = secret {
            request = request.header(header::AUTHORIZATION, format!("Bearer {secret}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body)));
        let request = request.map_err(|why| failed(&why))?;
        let asked = async {
            let io = TokioIo::new(linked.link);
            let (mut sender, connection) =
                http1::handshake(io).await.map_err(|why| failed(&why))?;
            let connection = tokio::spawn(connection);
            let answer = sender
                .send_request(request)
                .await
                .map_err(|why| failed(&why))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|why| failed(&why))?.to_bytes();
            connection.abort();
            let retry_after = head.headers.get(header::RETRY_AFTER);
            let retry_after = retry_after.and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
            Ok::<_, Failure>(Answer {
                status: head.status.as_u16(),
                body: serde_json::from_slice(&body).unwrap_or_default(),
                retry_after: retry_after.map(|seconds| seconds.clamp(1, RETRY_AFTER_MAX)),
            })
        };
        match timeout(DEADLINE, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure(format!("{hub}: no answer within 15 s"))),
        }
    }
}
