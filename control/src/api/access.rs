//! Who may ask: request ids, the `Host` allow-list, the admin token.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use culvert_net::crypto::constant_time_eq;
use uuid::Uuid;

use super::{Problem, Shared, audit, kind};
use crate::audit::{Actor, Cause};
use crate::token;

/// A request that takes longer is answered 503.
const DEADLINE: Duration = Duration::from_secs(10);
const REQUEST_ID: &str = "x-request-id";

/// Where a request came in; set by the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The Unix socket: the peer's uid was checked.
    Socket {
        /// Of the peer.
        uid: u32,
    },
    /// TCP: nothing is known yet.
    Tcp,
}

/// The id of a request, which its log line, its answer and its audit row carry.
#[derive(Clone)]
struct RequestId(String);

/// Gives every request an id and a deadline, writes its errors, logs it.
pub(super) async fn traced(
    State(context): State<Shared>,
    mut request: Request,
    next: Next,
) -> Response {
    let own = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok());
    let id = own
        .and_then(|id| Uuid::try_parse(id).ok())
        .unwrap_or_else(Uuid::now_v7)
        .to_string();
    request.extensions_mut().insert(RequestId(id.clone()));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let started = Instant::now();
    let answer = tokio::time::timeout(DEADLINE, next.run(request)).await;
    let mut response = answer.unwrap_or_else(|_| {
        let fix = "try again; if it stays, see control's log";
        Problem::new(&kind::SLOW, "over 10 s", fix).into_response()
    });
    let problem = response.extensions_mut().remove::<Problem>();
    if let Some(problem) = &problem {
        response = problem.render(&id);
    }
    let status = response.status().as_u16();
    let code = problem.as_ref().map_or("", |problem| problem.code());
    let seen = problem.as_ref().map_or("", |problem| problem.seen());
    let took = started.elapsed();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    context
        .metrics
        .request(route, known_method(&method), status, took);
    let duration_ms = took.as_millis();
    if response.status().is_server_error() {
        tracing::warn!(%method, path, status, code, seen, request_id = id, duration_ms, "request failed");
    } else {
        tracing::debug!(%method, path, status, code, seen, request_id = id, duration_ms, "request");
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// Refuses other names for this host, so that no web page can reach it by DNS rebinding.
pub(super) async fn known_host(
    State(context): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if matches!(caller(&request), Caller::Socket { .. }) {
        return Ok(next.run(request).await);
    }
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let host = host.unwrap_or_default();
    if context
        .hosts
        .iter()
        .any(|known| known.eq_ignore_ascii_case(host))
    {
        return Ok(next.run(request).await);
    }
    let fix = format!("ask for one of: {}", context.hosts.join(", "));
    Err(Problem::new(
        &kind::HOST_REFUSED,
        format!("Host: {host:?}"),
        fix,
    ))
}

/// Lets in the Unix socket, and TCP with the admin token; says further on who it is.
pub(super) async fn admin_only(
    State(context): State<Shared>,
    route: MatchedPath,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let is_admin = match (&context.admin, bearer(request.headers())) {
        (Some(admin), Some(given)) => constant_time_eq(&admin.0, &token::digest(given).0),
        _ => false,
    };
    let actor = match caller(&request) {
        Caller::Socket { uid } => Some((format!("uid:{uid}"), "unix")),
        Caller::Tcp => is_admin.then(|| ("admin-token".to_owned(), "tcp")),
    };
    if let Some((sub, transport)) = actor {
        let cause = cause(&request, sub, transport);
        request.extensions_mut().insert(Arc::new(cause));
        return Ok(next.run(request).await);
    }
    let seen = match bearer(request.headers()) {
        Some(_) => "a bearer token that is not the admin token",
        None => "no bearer token",
    };
    let fix = "send the token of admin-token in control's state directory, or use the Unix socket";
    let problem = Problem::new(&kind::UNAUTHENTICATED, seen, fix);
    let cause = cause(&request, "unknown".to_owned(), "tcp");
    audit::unknown(&context, request.method(), &route, &params, cause, &problem).await;
    Err(problem)
}

fn cause(request: &Request, sub: String, transport: &'static str) -> Cause {
    let id = request.extensions().get::<RequestId>();
    let route = request.extensions().get::<MatchedPath>();
    Cause {
        actor: Actor {
            sub,
            email: String::new(),
            groups: Vec::new(),
        },
        request_id: id.map_or_else(String::new, |id| id.0.clone()),
        route: format!(
            "{} {}",
            request.method(),
            route.map_or("", MatchedPath::as_str)
        ),
        transport,
    }
}

/// The bearer token of a request.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn caller(request: &Request) -> Caller {
    // A listener that forgot to say where it listens is treated as the open one.
    request.extensions().get().copied().unwrap_or(Caller::Tcp)
}

/// A method as a label: a caller cannot invent further ones.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
