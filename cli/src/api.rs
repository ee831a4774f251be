//! The client of control's admin API: JSON over a Unix socket, or over TCP with the admin token,
//! an API token or a login.

mod endpoint;
mod events;

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::response::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::args::Global;
use crate::error::{CliError, Result};
use crate::login::{COOKIE, Login, Shown};

use endpoint::Endpoint;

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Items that are asked for at once.
const PAGE_ITEMS: usize = 1_000;
/// Pages of one list: more than a full hub has.
const PAGES_MAX: usize = 1_000;
const DEADLINE: Duration = Duration::from_secs(15);

/// Where the admin API listens without a word.
const DEFAULT: &str = "unix:/run/culvert/api.sock";

/// Where the admin API listens and how to get in.
pub struct Api {
    endpoint: Endpoint,
    place: String,
    shown: Option<Shown>,
    /// The login that is used, and where it is kept.
    login: Option<(Login, PathBuf)>,
    dry_run: bool,
}

impl Api {
    /// The API that the flags name, else the one of the login.
    ///
    /// # Errors
    /// When the address is of no known form, or token or login cannot be read.
    pub fn new(global: &Global) -> Result<Self> {
        let token = global.api_token_file.as_deref().map(read_token);
        let token = token.transpose()?;
        let file = global.login.file();
        // A socket asks for no login; whoever names a token is that.
        let wants_login = token.is_none()
            && global
                .api
                .as_deref()
                .is_none_or(|api| !api.starts_with("unix:"));
        let kept = match (&file, wants_login) {
            (Some(file), true) => Login::read(file)?,
            _ => None,
        };
        let is_meant = |kept: &Login| global.api.as_ref().is_none_or(|api| *api == kept.api);
        if let (Some(kept), Some(file)) = (kept.filter(is_meant), file) {
            let dry_run = global.dry_run;
            return Ok(Self {
                dry_run,
                ..Self::of_login(kept, Some(file))?
            });
        }
        let api = global.api.as_deref().unwrap_or(DEFAULT);
        Ok(Self {
            shown: token.map(Shown::Bearer),
            dry_run: global.dry_run,
            ..Self::at(api, global.api_ca.as_deref())?
        })
    }

    /// The API at an address, for who shows nothing.
    ///
    /// # Errors
    /// When the address is of no known form.
    pub fn at(api: &str, ca: Option<&Path>) -> Result<Self> {
        Ok(Self {
            endpoint: Endpoint::new(api, ca)?,
            place: api.to_owned(),
            shown: None,
            login: None,
            dry_run: false,
        })
    }

    /// The API of a login, which is kept anew in `file` when control renews it.
    ///
    /// # Errors
    /// As [`Api::at`].
    pub fn of_login(login: Login, file: Option<PathBuf>) -> Result<Self> {
        Ok(Self {
            shown: Some(login.shown.clone()),
            ..Self::at(&login.api, login.api_ca.as_deref())?
        }
        .renewed_in(login, file))
    }

    fn renewed_in(mut self, login: Login, file: Option<PathBuf>) -> Self {
        self.login = file.map(|file| (login, file));
        self
    }

    /// Where it is, as `--api` takes it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The API on a Unix socket, as quickstart uses it.
    pub fn on_socket(path: PathBuf) -> Self {
        Self {
            place: format!("unix:{}", path.display()),
            endpoint: Endpoint::Unix(path),
            shown: None,
            login: None,
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

    /// Signs in by password: what control says, and the session's cookie.
    ///
    /// # Errors
    /// When control cannot be reached or refuses.
    pub async fn sign_in(&self, body: Value) -> Result<(Value, String)> {
        let path = "/api/auth/login";
        let (head, said) = self.whole(Method::POST, path, Some(body)).await?;
        let cookie = session(&head.headers);
        let cookie = cookie.ok_or_else(|| broken("a login without a session"))?;
        Ok((said, cookie))
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let asked = self.whole(method, path, body).await;
        let (head, said) = asked.map_err(|error| self.of_login_error(error))?;
        if let (Some((login, file)), Some(fresh)) = (&self.login, session(&head.headers))
            && let Shown::Session { origin, .. } = &login.shown
        {
            let shown = Shown::Session {
                cookie: fresh,
                origin: origin.clone(),
            };
            let login = Login {
                shown,
                ..login.clone()
            };
            // The old one goes on for a while; the answer counts.
            let _ = login.keep(file);
        }
        Ok(said)
    }

    /// A login that is over is begun anew, not repaired.
    fn of_login_error(&self, mut error: CliError) -> CliError {
        if self.login.is_some() && &*error.code == "unauthenticated" {
            error.fix = "culvert login again: the login is over, or the token was revoked".into();
        }
        error
    }

    async fn whole(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(Parts, Value)> {
        let answer = async {
            let (head, body) = self.send(method, path, body, None).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(broken)?
                .to_bytes();
            let said = decode(head.status, &body)?;
            Ok((head, said))
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
        let (stream, host) = self.endpoint.connect().await?;
        let changes = !method.is_safe();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host);
        match &self.shown {
            Some(Shown::Bearer(token)) => {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            Some(Shown::Session { cookie, origin }) => {
                request = request.header(header::COOKIE, format!("{COOKIE}={cookie}"));
                // Control lets a session change something from its own pages alone.
                if changes {
                    request = request.header(header::ORIGIN, origin);
                }
            }
            None => {}
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
}

/// The session of an answer, if it begins or renews one.
fn session(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(header::SET_COOKIE).iter();
    let mut cookies = cookies.filter_map(|cookie| cookie.to_str().ok());
    let found = cookies.find_map(|cookie| cookie.strip_prefix(COOKIE)?.strip_prefix('='))?;
    let value = found.split(';').next().unwrap_or_default();
    (!value.is_empty()).then(|| value.to_owned())
}

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
