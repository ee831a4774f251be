//! Who may ask what: request ids, the `Host` allow-list, credentials and rights.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use culvert_identity::{SESSION_COOKIE, Session, Tier};
use culvert_net::crypto::constant_time_eq;
use culvert_proto::token::Digest;
use culvert_proto::update::PersonalToken;
use uuid::Uuid;

use super::{Context, Problem, Shared, audit, kind};
use crate::audit::{Actor, Cause};
use crate::identity::{Scope, is_reserved};
use crate::token;

/// A request that takes longer is answered 503.
const DEADLINE: Duration = Duration::from_secs(10);
const REQUEST_ID: &str = "x-request-id";
/// Where agents change their bootstrap tokens for certificates.
pub(super) const REGISTER: &str = culvert_proto::hello::REGISTER_PATH;

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
        let refused = std::mem::replace(&mut response, problem.render(&id));
        // A refusal may take a cookie away.
        for cookie in refused.headers().get_all(header::SET_COOKIE) {
            let headers = response.headers_mut();
            headers.append(header::SET_COOKIE, cookie.clone());
        }
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
    // An agent registers by whatever name it finds the hub; a page gains nothing by it: what counts
    // there is in the body, and the browser has none of it.
    if matches!(caller(&request), Caller::Socket { .. }) || request.uri().path() == REGISTER {
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

/// Who a caller turned out to be.
pub(super) struct Principal {
    /// What they may do.
    pub scopes: BTreeSet<Scope>,
    /// Where a cookie says who they are.
    pub session: Option<Session>,
    /// Where a personal token says who they are.
    pub personal: Option<Digest>,
    /// The word of a person's tier, `none` without one; machines have none.
    pub tier: Option<&'static str>,
    actor: Actor,
    transport: &'static str,
}

impl Principal {
    fn root(sub: String, transport: &'static str) -> Self {
        Self {
            scopes: [Scope::Admin].into(),
            session: None,
            personal: None,
            tier: None,
            actor: Actor {
                sub,
                email: String::new(),
                groups: Vec::new(),
            },
            transport,
        }
    }

    fn of_session(session: Session) -> Self {
        Self {
            scopes: Scope::of_tier(session.tier),
            actor: Actor {
                sub: session.subject.clone(),
                email: session.email.clone(),
                groups: session.groups.clone(),
            },
            transport: "session",
            personal: None,
            tier: Some(word(session.tier)),
            session: Some(session),
        }
    }

    /// Whose tier at the hub is `tier`.
    fn of_personal(token: &PersonalToken, tier: Option<Tier>) -> Self {
        Self {
            scopes: Scope::of_tier(tier),
            personal: Some(token.digest),
            tier: Some(word(tier)),
            ..Self::root(token.principal.to_string(), "personal-token")
        }
    }
}

fn word(tier: Option<Tier>) -> &'static str {
    tier.map_or("none", Tier::as_str)
}

/// Lets in whoever shows who they are and has the right: the Unix socket, the admin token,
/// an API token, a personal token, a session. Says further on who it is.
pub(super) async fn guarded(
    State(context): State<Shared>,
    route: MatchedPath,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let principal = match principal(&context, caller(&request), request.headers()).await {
        Ok(principal) => principal,
        Err(problem) => {
            let cause = cause(&request, nobody(), "tcp");
            audit::unknown(&context, request.method(), &route, &params, cause, &problem).await;
            return Err(on_page(problem, &request, &route));
        }
    };
    let cause = cause(&request, principal.actor.clone(), principal.transport);
    if let Err(problem) = may(&context, &principal, &request, &route) {
        audit::denied(&context, request.method(), &route, &params, cause, &problem).await;
        return Err(on_page(problem, &request, &route));
    }
    let renewed = renewal(&context, &principal, request.headers());
    request.extensions_mut().insert(Arc::new(cause));
    request.extensions_mut().insert(Arc::new(principal));
    let mut response = next.run(request).await;
    // Whoever signs out is not signed in again by the same answer.
    if !response.headers().contains_key(header::SET_COOKIE)
        && let Some(cookie) = renewed.and_then(|cookie| HeaderValue::from_str(&cookie).ok())
    {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// A refusal on a page of ours is one itself.
fn on_page(problem: Problem, request: &Request, route: &MatchedPath) -> Problem {
    match route.as_str().starts_with("/api/") {
        true => problem,
        false => problem.for_people(request.headers()),
    }
}

/// Who asks, on a page that is open.
pub(super) async fn known(
    context: &Shared,
    caller: Option<Caller>,
    headers: &HeaderMap,
) -> Result<Principal, Problem> {
    principal(context, caller.unwrap_or(Caller::Tcp), headers).await
}

async fn principal(
    context: &Shared,
    caller: Caller,
    headers: &HeaderMap,
) -> Result<Principal, Problem> {
    if let Caller::Socket { uid } = caller {
        return Ok(Principal::root(format!("uid:{uid}"), "unix"));
    }
    if let Some(given) = bearer(headers) {
        let digest = token::digest(given);
        let admin = context.admin.as_ref();
        if admin.is_some_and(|admin| constant_time_eq(&admin.0, &digest.0)) {
            return Ok(Principal::root("admin-token".to_owned(), "tcp"));
        }
        if let Some(token) = context.hub.personal_token(&digest) {
            return by_personal(context, &token);
        }
        let token = context.hub.api_token(&digest).await?;
        let token = token.ok_or_else(|| {
            unauthenticated("a bearer token that is neither the admin token nor a live one")
        })?;
        return Ok(Principal {
            scopes: token.scopes,
            ..Principal::root(format!("api-token:{}", token.id), "tcp")
        });
    }
    let cookies = headers.get(header::COOKIE);
    let cookies = cookies.and_then(|cookies| cookies.to_str().ok());
    let now_s = context.hub.now_ms() / 1000;
    let sign_in = context.sign_in.as_ref();
    let session = cookies.zip(sign_in);
    let session = session.and_then(|(cookies, sign_in)| sign_in.session(cookies, now_s));
    match session {
        None => Err(unauthenticated("no bearer token and no session")),
        Some(Err(why)) => Err(unauthenticated(format!("a session cookie: {why}"))),
        Some(Ok(session)) => {
            let epoch = context.hub.session_epoch(&session.subject).await?;
            if !session.is_of_epoch(epoch) {
                return Err(unauthenticated("a session that was ended everywhere"));
            }
            Ok(Principal::of_session(session))
        }
    }
}

/// A personal token acts as its principal, with the tier that they have by their own name: of
/// their groups a token knows nothing.
fn by_personal(context: &Context, token: &PersonalToken) -> Result<Principal, Problem> {
    if is_reserved(&token.principal) {
        let seen = "a personal token whose principal is no person's name";
        return Err(unauthenticated(seen));
    }
    let sign_in = context.sign_in.as_ref();
    let tier = sign_in.and_then(|it| it.tiers.of(&token.principal, &[]));
    Ok(Principal::of_personal(token, tier))
}

/// Whether what let them in is over: a session, or a personal token. A store that does not answer
/// ends nobody's.
pub(super) async fn has_ended(context: &Context, principal: &Principal) -> bool {
    if let Some(digest) = &principal.personal {
        return context.hub.personal_token(digest).is_none();
    }
    let Some(session) = &principal.session else {
        return false;
    };
    let now_s = context.hub.now_ms() / 1000;
    let epoch = context.hub.session_epoch(&session.subject).await;
    session.idle_until_unix_s.min(session.expires_unix_s) <= now_s
        || epoch.is_ok_and(|epoch| !session.is_of_epoch(epoch))
}

/// Whether they may do this. A session may change something from our own pages only (P-25).
fn may(
    context: &Shared,
    principal: &Principal,
    request: &Request,
    route: &MatchedPath,
) -> Result<(), Problem> {
    if principal.session.is_some() && !request.method().is_safe() {
        own_origin(context, request.headers())?;
    }
    let wanted = Scope::wanted(request.method().as_str(), route.as_str());
    let wanted = match wanted {
        Some(wanted) if !wanted.is_in(&principal.scopes) => wanted,
        _ => return Ok(()),
    };
    let held: Vec<_> = principal.scopes.iter().map(|it| it.as_str()).collect();
    let seen = format!("{} has: {}", principal.actor.sub, held.join(", "));
    let fix = format!("ask an administrator for the right {}", wanted.as_str());
    Err(Problem::new(&kind::FORBIDDEN, seen, fix))
}

/// Refuses pages of other origins, and callers that do not say where they come from.
pub(super) fn own_origin(context: &Shared, headers: &HeaderMap) -> Result<(), Problem> {
    let mut given = headers.get_all(header::ORIGIN).iter();
    let origin = match (given.next(), given.next()) {
        (Some(origin), None) => origin.to_str().unwrap_or_default(),
        (None, _) => "none",
        (Some(_), Some(_)) => "several",
    };
    let sign_in = context.sign_in.as_ref();
    if sign_in.is_some_and(|it| it.origins.iter().any(|known| known == origin)) {
        return Ok(());
    }
    let fix = "send Origin of --public-url or of one of --allowed-origins";
    let seen = format!("Origin: {origin:?}");
    Err(Problem::new(&kind::ORIGIN_REFUSED, seen, fix))
}

fn renewal(context: &Shared, principal: &Principal, headers: &HeaderMap) -> Option<String> {
    let (session, sign_in) = (principal.session.as_ref()?, context.sign_in.as_ref()?);
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    sign_in.renewed(cookies, session, context.hub.now_ms() / 1000)
}

fn unauthenticated(seen: impl Into<String>) -> Problem {
    let fix = "sign in, send an API token, a personal token or the token of admin-token in \
               control's state directory, or use the Unix socket";
    Problem::new(&kind::UNAUTHENTICATED, seen, fix)
}

/// The actor of a caller of whom nothing is known.
pub(super) fn nobody() -> Actor {
    Actor {
        sub: "unknown".to_owned(),
        email: String::new(),
        groups: Vec::new(),
    }
}

/// The session alone of the cookies that a browser sent.
pub(super) fn own_cookie(cookies: &HeaderValue) -> HeaderValue {
    let own = cookies.to_str().ok();
    let own = own.and_then(|cookies| culvert_identity::find(cookies, SESSION_COOKIE));
    let own = own.and_then(|own| HeaderValue::from_str(&format!("{SESSION_COOKIE}={own}")).ok());
    own.unwrap_or(HeaderValue::from_static(""))
}

/// What makes it happen.
pub(super) fn cause(request: &Request, actor: Actor, transport: &'static str) -> Cause {
    let id = request.extensions().get::<RequestId>();
    let route = request.extensions().get::<MatchedPath>();
    Cause {
        actor,
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
