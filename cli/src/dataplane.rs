//! Asks the admin listener of a data plane, over plain HTTP.

use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

use crate::error::{CliError, Result};

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
const DEADLINE: Duration = Duration::from_secs(10);

/// A data plane's admin listener.
pub struct Dataplane {
    authority: String,
}

impl Dataplane {
    /// The one that `url` names.
    ///
    /// # Errors
    /// When it is no `http://` address.
    pub fn new(url: &str) -> Result<Self> {
        let authority = url
            .strip_prefix("http://")
            .map(|it| it.trim_end_matches('/'));
        match authority {
            Some(authority) if !authority.is_empty() && !authority.contains('/') => Ok(Self {
                authority: authority.to_owned(),
            }),
            _ => Err(CliError::usage(
                "the data plane's address is of no known form",
                url,
                "give --dataplane http://127.0.0.1:9901, or wherever --admin-addr listens",
            )),
        }
    }

    /// The text at `path`.
    ///
    /// # Errors
    /// When there is none.
    pub async fn get(&self, path: &str) -> Result<String> {
        let (status, text) = self.ask(Method::GET, path, DEADLINE).await?;
        match status {
            StatusCode::OK => Ok(text),
            StatusCode::BAD_REQUEST => Err(CliError::usage(
                "the data plane does not list that",
                text.trim(),
                "see culvert top --help",
            )),
            status => Err(self.broken(format!("{status}: {}", text.trim()))),
        }
    }

    /// Has something done that takes up to `time`; its status and text, whatever they are.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post(&self, path: &str, time: Duration) -> Result<(StatusCode, String)> {
        self.ask(Method::POST, path, time + DEADLINE).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        deadline: Duration,
    ) -> Result<(StatusCode, String)> {
        match tokio::time::timeout(deadline, self.exchange(method, path)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.broken(format!("no answer within {} s", deadline.as_secs()))),
        }
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<(StatusCode, String)> {
        let stream = tokio::net::TcpStream::connect(&self.authority).await;
        let stream = stream.map_err(|why| self.broken(why))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
                .await
                .map_err(|why| self.broken(why))?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header::HOST, &self.authority);
        let request = request.body(Empty::new()).map_err(|why| self.broken(why))?;
        let answer = sender.send_request(request).await;
        let (head, body) = answer.map_err(|why| self.broken(why))?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|why| self.broken(why))?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        Ok((head.status, text))
    }

    /// What it answers cannot be.
    pub fn broken(&self, why: impl std::fmt::Display) -> CliError {
        CliError::new(
            "dataplane_unreachable",
            "the data plane's admin listener gives no answer",
            format!("{}: {why}", self.authority),
            "dataplane",
            "run this where --admin-addr is reached, and name it with --dataplane",
        )
    }
}
