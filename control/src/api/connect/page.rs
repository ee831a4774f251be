//! `/enrol/{request_id}`: the page on which an administrator decides about an agent. Everything
//! that the agent says stands there as its own word.

use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse as _, Redirect, Response};

use super::{Approval, decide};
use crate::api::access::{self, Caller, Principal};
use crate::api::page::escaped;
use crate::api::problem::ProblemBody;
use crate::api::times::rfc3339;
use crate::api::{Problem, Shared, kind};
use crate::audit::Cause;
use crate::cluster::{Patch, TargetKind};
use crate::connect::{ConnectRequest, Decision, Standing, is_id};
use crate::identity::Scope;

/// Where the page is.
pub const PATH: &str = "/enrol";
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; \
                      form-action 'self'; base-uri 'none'";
const STYLE: &str = "body{font:16px sans-serif;margin:3em;max-width:46em}\
                     td{padding:.2em 1em .2em 0}.code{font:bold 2em monospace;letter-spacing:.1em}\
                     fieldset{margin:1em 0}.said{background:#fe9;padding:.1em .3em}";
/// Longest form, in bytes.
const FORM_BYTES_MAX: usize = 4 << 10;
/// Clusters that the page proposes.
const PROPOSED_MAX: usize = 200;

/// Shows a request to who may decide, and to others where to sign in.
#[utoipa::path(get, operation_id = "show_connect_request", path = "/enrol/{request_id}", tag = "pages",
    security(()), params(("request_id" = String, Path)),
    responses((status = OK, content_type = "text/html", body = String), (status = "default", body = ProblemBody)))]
pub(in crate::api) async fn show(
    State(context): State<Shared>,
    Path(id): Path<String>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
) -> Response {
    let caller = caller.map(|Extension(caller)| caller);
    match shown(&context, &id, caller, &headers).await {
        Ok(page) => page,
        Err(problem) => problem.for_people(&headers).into_response(),
    }
}

async fn shown(
    context: &Shared,
    id: &str,
    caller: Option<Caller>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    // Before it stands in a link.
    if !is_id(id) {
        let fix = "open the address that the agent shows";
        return Err(Problem::new(&kind::UNKNOWN_CONNECT_REQUEST, "no id", fix));
    }
    let Ok(principal) = access::known(context, caller, headers).await else {
        return Ok(signing_in(context, id));
    };
    may_decide(&principal)?;
    let held = context.hub.connect_request(id).await?;
    Ok(page(StatusCode::OK, &decision(context, &held)))
}

fn may_decide(principal: &Principal) -> Result<(), Problem> {
    if Scope::Admin.is_in(&principal.scopes) {
        return Ok(());
    }
    let fix = "ask an administrator to open this page";
    let seen = "signed in without the tier admin";
    Err(Problem::new(&kind::FORBIDDEN, seen, fix))
}

/// Who is not signed in learns nothing of the request.
fn signing_in(context: &Shared, id: &str) -> Response {
    use std::fmt::Write as _;
    let mut body = "<h1>An agent asks to connect</h1>\
                    <p>Sign in as an administrator to see it:<ul>"
        .to_owned();
    let sign_in = context.sign_in.as_ref();
    for provider in sign_in.map_or(&[][..], |it| it.oidc.providers()) {
        let client = &provider.client;
        let (name, title) = (escaped(&client.name), escaped(&client.title));
        let _ = write!(
            body,
            "<li><a href=\"/api/auth/login?provider={name}&amp;return={PATH}/{id}\">{title}</a>"
        );
    }
    let _ = write!(
        body,
        "<li>on control's machine: <code>culvert connect ls</code></ul>"
    );
    page(StatusCode::UNAUTHORIZED, &body)
}

/// The request, and what can be done with it.
fn decision(context: &Shared, held: &ConnectRequest) -> String {
    let standing = held.standing(context.hub.now_ms());
    let said = |text: &str| match text {
        "" => "nothing".to_owned(),
        text => format!("<span class=\"said\">{}</span>", escaped(text)),
    };
    let facts = format!(
        "<h1>An agent asks to connect</h1>\
         <p>The agent shows this code. Is it the same?<p class=\"code\">{}\
         <table><tr><td>Asked from<td>{}<tr><td>Good until<td>{}<tr><td>Stands<td>{}</table>\
         <p>What the agent says of itself, unchecked:<table><tr><td>Cluster it wishes for<td>{}\
         <tr><td>Host<td>{}<tr><td>Version<td>{}</table>",
        escaped(&held.code),
        escaped(&held.address),
        rfc3339(held.expires_unix_ms),
        standing.as_str(),
        said(&held.asked.cluster),
        said(&held.asked.host),
        said(&held.asked.version),
    );
    let refuse =
        "<form method=\"post\"><button name=\"decision\" value=\"deny\">Refuse</button></form>";
    match standing {
        Standing::Pending => format!("{facts}{}{refuse}", form(context, held)),
        Standing::Approved(cluster) => format!(
            "{facts}<p>Approved for cluster {cluster}; the agent has not fetched its token yet.{refuse}"
        ),
        Standing::Consumed(cluster) => {
            format!("{facts}<p>The agent has its token of cluster {cluster}.")
        }
        Standing::Expired => format!("{facts}<p>Nobody decided in time; let the agent ask anew."),
        Standing::Denied => format!("{facts}<p>Refused."),
    }
}

fn form(context: &Shared, held: &ConnectRequest) -> String {
    let clusters = context.hub.clusters();
    let wish = &held.asked.cluster;
    let is_known = clusters.keys().any(|id| id.as_str() == wish);
    let options: String = clusters
        .keys()
        .take(PROPOSED_MAX)
        .map(|id| format!("<option value=\"{id}\">"))
        .collect();
    format!(
        "<form method=\"post\"><fieldset><legend>Let it in</legend>\
         <p><label>Cluster <input name=\"cluster\" list=\"clusters\" required maxlength=\"63\" \
         value=\"{}\"></label><datalist id=\"clusters\">{options}</datalist>\
         <p><label><input type=\"checkbox\" name=\"create\" value=\"true\"{}> register it as a new \
         cluster</label> <label>in front of <select name=\"kind\"><option value=\"kube\">a \
         Kubernetes API<option value=\"http\">an HTTP service</select></label>\
         <p><button name=\"decision\" value=\"approve\">Approve</button></fieldset></form>",
        escaped(wish),
        if is_known { "" } else { " checked" },
    )
}

fn page(status: StatusCode, body: &str) -> Response {
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <title>Culvert: an agent asks to connect</title><style>{STYLE}</style>{body}</html>\n"
    );
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        // With less than this a browser does not say where the form comes from.
        (header::REFERRER_POLICY, "same-origin"),
    ];
    (status, headers, Html(page)).into_response()
}

/// Takes the form of the page. Who may, and from which origin, was looked at before.
#[utoipa::path(post, operation_id = "decide_connect_request", path = "/enrol/{request_id}", tag = "pages",
    params(("request_id" = String, Path)),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = SEE_OTHER), (status = "default", body = ProblemBody)))]
pub(in crate::api) async fn submit(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let done = submitted(&context, &cause, &id, request).await;
    done.map_err(|problem| problem.for_people(&headers))
}

async fn submitted(
    context: &Shared,
    cause: &Cause,
    id: &str,
    request: Request,
) -> Result<Response, Problem> {
    if !is_form(request.headers()) {
        let fix = "use the form of the page, or POST /api/connect/requests/{id}/approve";
        return Err(Problem::new(&kind::BAD_FIELD, "no form", fix));
    }
    let body = to_bytes(request.into_body(), FORM_BYTES_MAX).await;
    let body = body.map_err(|why| {
        let fix = format!("send at most {FORM_BYTES_MAX} bytes");
        Problem::new(&kind::BODY_TOO_LARGE, why.to_string(), fix)
    })?;
    let fields: Vec<_> = url::form_urlencoded::parse(&body).into_owned().collect();
    let field = |name: &str| {
        let found = fields.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    match field("decision") {
        "approve" => {
            let create = field("create") == "true";
            let kind = match field("kind") {
                "http" => TargetKind::Http,
                _ => TargetKind::Kube,
            };
            let approval = Approval {
                cluster: field("cluster").trim().to_owned(),
                create,
                spec: create.then(|| Patch {
                    target_kind: Some(kind),
                    ..Patch::default()
                }),
            };
            decide(context, cause, id, approval).await?;
        }
        "deny" => {
            let hub = &context.hub;
            hub.decide_connect_request(cause, id, Decision::Deny, None)
                .await?;
        }
        _ => return Err(Problem::field("decision", "wants approve or deny")),
    }
    // The id is one of ours: it was found.
    Ok(Redirect::to(&format!("{PATH}/{id}")).into_response())
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"))
}
