//! `/audit`: who did what (P-07); and the rows of changes that the API refused.

pub(super) mod live;
mod row;

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Extension, MatchedPath, RawPathParams, Request, State};
use axum::http::{HeaderName, Method};
use axum::middleware::Next;
use axum::response::Response;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::access::Principal;
use super::body::Params;
use super::problem::ProblemBody;
use super::times::unix_ms;
use super::{Problem, Shared};
use crate::audit::{ATTEMPTED, Cause, Entry, Filter, Outcome, Verb};
use crate::identity::Scope;

use row::AuditRow;
pub use row::line;

const LIMIT_MAX: u32 = 500;
const LIMIT_DEFAULT: u32 = 100;
/// `all`, or `self`: who has no right to more sees their own rows.
const SCOPE: HeaderName = HeaderName::from_static("x-audit-scope");

/// Rows of the audit log.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditPage {
    items: Vec<AuditRow>,
    /// Rows that match in all.
    total: u64,
    limit: u32,
    offset: u64,
    /// Cursor of the next page; null on the last one.
    next: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditParams {
    /// `sub` or `email`.
    actor: Option<String>,
    verb: Option<String>,
    /// attempted, success, denied or failure.
    outcome: Option<String>,
    cluster: Option<String>,
    namespace: Option<String>,
    /// Name of the resource.
    name: Option<String>,
    request_id: Option<String>,
    /// Not before; RFC 3339.
    from: Option<String>,
    /// Before; RFC 3339.
    to: Option<String>,
    /// Rows at most, 1 to 500; 100 by default.
    limit: Option<u32>,
    /// Rows to leave out, from the newest.
    offset: Option<u64>,
    /// `next` of the page before; steadier than an offset while rows are added.
    cursor: Option<String>,
}

impl AuditParams {
    fn filter(self) -> Result<Filter, Problem> {
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            let why = format!("is {limit}; 1 to {LIMIT_MAX} are allowed");
            return Err(Problem::field("limit", why));
        }
        let time = |field, text: Option<String>| {
            let parsed = text.map(|text| unix_ms(&text));
            parsed.transpose().map_err(|why| Problem::field(field, why))
        };
        let asked = culvert_audit::Verb::ALL.iter().map(|verb| verb.as_str());
        let verbs = Verb::ALL.iter().map(|verb| verb.as_str()).chain(asked);
        let verbs: Vec<_> = verbs.collect();
        let ended = Outcome::ALL.iter().map(|it| it.as_str());
        let outcomes: Vec<_> = [ATTEMPTED].into_iter().chain(ended).collect();
        let before = self.cursor.map(|text| text.parse().map_err(|_| text));
        let before = before.transpose().map_err(|seen| {
            Problem::field("cursor", format!("is {seen:?}; pass `next` of a page"))
        })?;
        Ok(Filter {
            actor: self.actor,
            verb: one_of("verb", self.verb, &verbs)?,
            outcome: one_of("outcome", self.outcome, &outcomes)?,
            cluster: self.cluster,
            namespace: self.namespace,
            name: self.name,
            request_id: self.request_id,
            from_unix_ms: time("from", self.from)?,
            to_unix_ms: time("to", self.to)?,
            limit,
            offset: self.offset.unwrap_or(0),
            before,
        })
    }
}

fn one_of(field: &str, word: Option<String>, known: &[&str]) -> Result<Option<String>, Problem> {
    match word {
        Some(word) if !known.contains(&word.as_str()) => {
            let why = format!("is {word:?}; one of {} is wanted", known.join(", "));
            Err(Problem::field(field, why))
        }
        word => Ok(word),
    }
}

/// Who did what, newest first.
#[utoipa::path(get, operation_id = "list_audit", path = "/audit", params(AuditParams), tag = "audit",
    responses(
        (status = OK, body = AuditPage, headers(("X-Audit-Scope" = String, description = "all, or self: only rows of the caller"))),
        (status = "default", body = ProblemBody)))]
pub(super) async fn list(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Extension(principal): Extension<Arc<Principal>>,
    Params(params): Params<AuditParams>,
) -> Result<([(HeaderName, &'static str); 1], Answer<AuditPage>), Problem> {
    let mut filter = params.filter()?;
    let scope = scoped(&mut filter, &cause, &principal);
    let (rows, total) = context.hub.audit(&filter).await?;
    let is_full = rows.len() == filter.limit as usize;
    let last = rows.last().filter(|_| is_full);
    let page = AuditPage {
        next: last.map(|row| row.seq.to_string()),
        items: rows.into_iter().map(Into::into).collect(),
        total,
        limit: filter.limit,
        offset: filter.offset,
    };
    Ok((scope, Answer(page)))
}

/// Who may not see all rows sees their own.
fn scoped(
    filter: &mut Filter,
    cause: &Cause,
    principal: &Principal,
) -> [(HeaderName, &'static str); 1] {
    if Scope::Audit.is_in(&principal.scopes) {
        return [(SCOPE, "all")];
    }
    filter.actor = Some(cause.actor.sub.clone());
    [(SCOPE, "self")]
}

/// Rows in a minute of callers who showed no valid credential: they may not fill the log.
const UNKNOWN_ROWS_MAX: u32 = 30;
const MINUTE_MS: u64 = 60_000;

/// How many rows of unknown callers there were in this minute.
#[derive(Default)]
pub struct Unknown(Mutex<(u64, u32)>);

impl Unknown {
    pub(super) fn admits(&self, now_ms: u64) -> bool {
        let (minute, rows) = &mut *self.0.lock();
        if *minute != now_ms / MINUTE_MS {
            (*minute, *rows) = (now_ms / MINUTE_MS, 0);
        }
        *rows = rows.saturating_add(1);
        *rows <= UNKNOWN_ROWS_MAX
    }
}

/// A change that somebody asks for.
struct Asked {
    verb: Verb,
    cause: Arc<Cause>,
    cluster: Option<String>,
    /// Of the token, route or request.
    name: Option<String>,
}

impl Asked {
    fn of(
        method: &Method,
        route: &MatchedPath,
        params: &RawPathParams,
        cause: Arc<Cause>,
    ) -> Option<Self> {
        let param = |name| params.iter().find(|(key, _)| *key == name);
        let owned = |found: Option<(&str, &str)>| found.map(|(_, value)| value.to_owned());
        Some(Self {
            verb: verb(method, route.as_str())?,
            cause,
            cluster: owned(param("id")),
            name: owned(
                ["token_id", "route_id", "request_id", "ca_id"]
                    .into_iter()
                    .find_map(param),
            ),
        })
    }

    fn refused(self, problem: &Problem, outcome: Outcome, now_ms: u64) -> Entry {
        let cluster = self
            .cluster
            .or_else(|| problem.cluster().map(str::to_owned));
        let cluster = cluster.unwrap_or_default();
        let name = match self.verb.resource() {
            "clusters" => cluster.clone(),
            _ => self.name.unwrap_or_default(),
        };
        Entry {
            time_unix_ms: now_ms,
            cause: Cause::clone(&self.cause),
            verb: self.verb,
            outcome,
            cluster: bounded(&cluster),
            name: bounded(&name),
            reason: problem.code().to_owned(),
        }
    }
}

/// A change that was refused leaves a row too. The row of a change that was
/// made is recorded with it.
pub(super) async fn refusals(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    route: MatchedPath,
    params: RawPathParams,
    request: Request,
    next: Next,
) -> Response {
    let Some(asked) = Asked::of(request.method(), &route, &params, cause) else {
        return next.run(request).await;
    };
    let response = next.run(request).await;
    if let Some(problem) = response.extensions().get::<Problem>() {
        let outcome = if response.status().is_server_error() {
            Outcome::Failure
        } else {
            Outcome::Denied
        };
        let entry = asked.refused(problem, outcome, context.hub.now_ms());
        context.hub.refused(entry).await;
    }
    response
}

/// So does one of a caller who showed no valid credential, some of them.
pub(super) async fn unknown(
    context: &Shared,
    method: &Method,
    route: &MatchedPath,
    params: &RawPathParams,
    cause: Cause,
    problem: &Problem,
) {
    if context.unknown.admits(context.hub.now_ms()) {
        denied(context, method, route, params, cause, problem).await;
    }
}

/// And one of a caller who is known and has no right to it, each of them.
pub(super) async fn denied(
    context: &Shared,
    method: &Method,
    route: &MatchedPath,
    params: &RawPathParams,
    cause: Cause,
    problem: &Problem,
) {
    if let Some(asked) = Asked::of(method, route, params, Arc::new(cause)) {
        let entry = asked.refused(problem, Outcome::Denied, context.hub.now_ms());
        context.hub.refused(entry).await;
    }
}

/// What a route changes.
fn verb(method: &Method, route: &str) -> Option<Verb> {
    let below = |root| route.split_once(root).map(|(_, below)| below);
    let of_person = below("/personal-tokens").map(|below| (method.as_str(), below));
    match of_person {
        Some(("POST", "")) => return Some(Verb::PersonalTokenMint),
        Some(("DELETE", "/{token_id}")) => return Some(Verb::PersonalTokenRevoke),
        _ => {}
    }
    let of_machine = below("/api-tokens").map(|below| (method.as_str(), below));
    match of_machine {
        Some(("POST", "")) => return Some(Verb::ApiTokenMint),
        Some(("DELETE", "/{token_id}")) => return Some(Verb::ApiTokenRevoke),
        _ => {}
    }
    let is_of_agent = route.contains("/connect/requests/") || route.starts_with("/enrol/");
    if is_of_agent && method == Method::POST {
        return Some(Verb::AgentRegister);
    }
    if let Some(below) = below("/agent-cas") {
        let known = matches!(
            (method.as_str(), below),
            ("POST", _) | ("DELETE", "/{ca_id}")
        );
        return known.then_some(Verb::CaRotate);
    }
    if route.ends_with("/agents/tokens") && method == Method::POST {
        return Some(Verb::TokenMint);
    }
    if route.ends_with("/auth/logout/everywhere") && method == Method::POST {
        return Some(Verb::LogoutEverywhere);
    }
    match (method.as_str(), below("/clusters")?) {
        ("POST", "") => Some(Verb::ClusterCreate),
        ("PATCH", "/{id}") => Some(Verb::ClusterUpdate),
        ("DELETE", "/{id}") => Some(Verb::ClusterDelete),
        ("POST", "/{id}/tokens") => Some(Verb::TokenMint),
        ("POST", "/{id}/rotate-token") => Some(Verb::TokenRotate),
        ("POST", "/{id}/revoke") | ("DELETE", "/{id}/tokens/{token_id}") => Some(Verb::TokenRevoke),
        ("POST", "/{id}/routes") => Some(Verb::RouteCreate),
        ("DELETE", "/{id}/routes/{route_id}") => Some(Verb::RouteDelete),
        _ => None,
    }
}

/// What a caller wrote, cut to the length of an id.
fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}
