//! The client of control's admin API: JSON over a Unix socket, or over TCP on
//! loopback with the admin token.

mod events;

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::args::Global;
use crate::error::{CliError, Result};

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Items that are asked for at once.
const PAGE_ITEMS: usize = 1_000;
/// Pages of one list: more than a full hub has.
const PAGES_MAX: usize = 1_000;
const DEADLINE: Duration = Duration::from_secs(15);

/// Where the admin API listens and how to get in.
pub struct Api {
    endpoint: Endpoint,
    token: Option<String>,
    dry_run: bool,
}

enum Endpoint {
    Unix(PathBuf),
    Tcp(String),
}

impl Api {
    /// The API that the flags name.
    ///
    /// # Errors
    /// When the address is of neither form or the token cannot be read.
    pub fn new(global: &Global) -> Result<Self> {
        let endpoint = if let Some(path) = global.api.strip_prefix("unix:") {
            Endpoint::Unix(path.into())
        } else if let Some(authority) = global.api.strip_prefix("http://") {
            Endpoint::Tcp(authority.trim_end_matches('/').to_owned())
        } else {
            let fix = "give --api unix:PATH or --api http://127.0.0.1:PORT";
            return Err(CliError::usage(
                "the API address is of no known form",
                &global.api,
                fix,
            ));
        };
        let token = global
            .api_token_file
            .as_deref()
            .map(read_token)
            .transpose()?;
        Ok(Self {
            endpoint,
            token,
            dry_run: global.dry_run,
        })
    }

    /// The API on a Unix socket, as quickstart uses it.
    pub fn on_socket(path: PathBuf) -> Self {
        Self {
            endpoint: Endpoint::Unix(path),
            token: None,
            dry_run: false,
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// When control cannot be reached or refuses.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.ask(Method::GET, path, None).await
    }

    /// Reads a list to its end, page by page.
    ///
    /// # Errors
    /// When control cannot be reached or refuses.
    pub async fn list(&self, path: &str) -> Result<Value> {
        let first = format!("{path}?limit={PAGE_ITEMS}");
        let mut whole = self.get(&first).await?;
        for _ in 1..PAGES_MAX {
            let Some(cursor) = whole["next"].as_str() else {
                break;
            };
            let mut page = self.get(&format!("{first}&cursor={cursor}")).await?;
            whole["next"] = page["next"].take();
            if let (Some(all), Some(more)) =
                (whole["items"].as_array_mut(), page["items"].as_array_mut())
            {
                all.append(more);
            }
        }
        Ok(whole)
    }

    /// Changes; with `--dry-run` it prints the change and returns `None`.
    ///
    /// # Errors
    /// When control cannot be reached or refuses.
    pub async fn change(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Option<Value>> {
        if self.dry_run {
            let body = body.map(|body| format!(" {body}")).unwrap_or_default();
            eprintln!("dry run: {method} {path}{body}");
            return Ok(None);
        }
        self.ask(method, path, body).await.map(Some)
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let answer = async {
            let (head, body) = self.send(method, path, body, None).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(broken)?
                .to_bytes();
            decode(head.status, &body)
        };
        match tokio::time::timeout(DEADLINE, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(broken("no answer within 15 s")),
        }
    }

    /// Sends a request with one further field and waits for the head of the answer.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        field: Option<(&str, String)>,
    ) -> Result<Response<Incoming>> {
        let (stream, host) = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some((name, value)) = field {
            request = request.header(name, value);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body))).map_err(broken)?;
        sender.send_request(request).await.map_err(broken)
    }

    async fn connect(&self) -> Result<(Box<dyn Io>, &str)> {
        match &self.endpoint {
            Endpoint::Unix(socket) => {
                let stream = tokio::net::UnixStream::connect(socket).await;
                let stream = stream.map_err(|why| unreachable(&socket.display(), &why))?;
                Ok((Box::new(stream), "localhost"))
            }
            Endpoint::Tcp(authority) => {
                let stream = tokio::net::TcpStream::connect(authority).await;
                let stream = stream.map_err(|why| unreachable(authority, &why))?;
                Ok((Box::new(stream), authority))
            }
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

fn read_token(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|why| {
        let seen = format!("{}: {why}", path.display());
        CliError::usage(
            "the admin token cannot be read",
            seen,
            "give a readable --api-token-file",
        )
    })?;
    Ok(text.trim().to_owned())
}

fn decode(status: StatusCode, body: &[u8]) -> Result<Value> {
    if body.is_empty() && status.is_success() {
        return Ok(Value::Null);
    }
    let value: Value = serde_json::from_slice(body)
        .map_err(|why| broken(format!("{status} with a body that is no JSON: {why}")))?;
    if status.is_success() {
        return Ok(value);
    }
    let field = |name: &str, otherwise: &str| {
        value[name]
            .as_str()
            .filter(|text| !text.is_empty())
            .unwrap_or(otherwise)
            .to_owned()
    };
    Err(CliError::new(
        &field("code", "refused"),
        &field("title", "control refused"),
        field("seen", &field("detail", status.as_str())),
        &field("side", "control"),
        &field("fix", "see control's log"),
    ))
}

fn unreachable(at: &impl std::fmt::Display, why: &std::io::Error) -> CliError {
    let fix = match why.kind() {
        std::io::ErrorKind::PermissionDenied => "run as the user that control runs as",
        _ => "start culvert-control, or name its admin API with --api",
    };
    let what = "control cannot be reached";
    CliError::new(
        "control_unreachable",
        what,
        format!("{at}: {why}"),
        "control",
        fix,
    )
}

fn broken(why: impl std::fmt::Display) -> CliError {
    let fix = "check that --api names culvert-control of this version";
    CliError::new(
        "control_broken",
        "control gave no usable answer",
        why,
        "control",
        fix,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_keeps_its_code_and_fix() {
        let body = br#"{"code":"unknown_cluster","title":"no such cluster","seen":"x","side":"client","fix":"culvert cluster list"}"#;
        let error = decode(StatusCode::NOT_FOUND, body).unwrap_err();
        assert_eq!(&*error.code, "unknown_cluster");
        assert!(
            error.to_string().contains("fix   culvert cluster list"),
            "{error}"
        );
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn an_answer_that_is_no_json_is_named() {
        let error = decode(StatusCode::OK, b"<html>").unwrap_err();
        assert_eq!(&*error.code, "control_broken");
    }
}
