//! `/auth` and `/whoami`: signing in and out, and who one is (P-03, P-04).

mod oidc;

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Extension, FromRequest as _, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse as _, Redirect, Response};
use culvert_identity::{Session, Tier};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::{self, Principal, nobody, own_origin};
use super::body::Json;
use super::license::banner;
use super::page;
use super::problem::ProblemBody;
use super::times::rfc3339;
use super::{Problem, Shared, kind};
use crate::audit::{Actor, Cause, Outcome, Verb};
use crate::identity::{BREAK_GLASS, Provider, Scope, SignIn};

pub(super) use oidc::{
    __path_callback, __path_callback_of_others, __path_start, callback, callback_of_others, start,
};

/// How one can sign in.
#[derive(Serialize, ToSchema)]
pub(super) struct AuthConfig {
    /// Whether POST /api/auth/login takes the administrator's password.
    break_glass: bool,
    /// Where a browser may be sent to sign in.
    providers: Vec<ProviderView>,
}

/// An identity provider.
#[derive(Serialize, ToSchema)]
pub(super) struct ProviderView {
    name: String,
    title: String,
    /// Send the browser there; `&return=/path` says where it ends.
    login_url: String,
}

/// Where a browser goes to end its session at the identity provider too.
#[derive(Serialize, ToSchema)]
pub(super) struct LoggedOut {
    end_session_url: String,
}

/// The break-glass login.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    email: String,
    password: String,
}

/// A session that has begun; the cookie is in `Set-Cookie`.
#[derive(Serialize, ToSchema)]
pub(super) struct LoggedIn {
    actor: String,
    tier: Option<&'static str>,
    expires_at: String,
    /// What an administrator has to be told at each login; null when there is nothing.
    warning: Option<String>,
}

/// Who one is.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct WhoAmI {
    actor: String,
    audit_enabled: bool,
    /// all, or self: only one's own rows can be seen.
    audit_scope: &'static str,
    /// How groups become identities of clusters: shared, tier or raw; mixed where clusters differ.
    mode: &'static str,
    /// read, triage, write, maintain or admin; none of a person without one; null of a machine.
    tier: Option<&'static str>,
}

/// Who one is, in full.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct WhoAmIFully {
    #[serde(flatten)]
    short: WhoAmI,
    subject: String,
    email: String,
    groups: Vec<String>,
    authz_mode: &'static str,
    /// Null where no session ends.
    expires_at: Option<String>,
}

fn sign_in(context: &Shared) -> Result<&SignIn, Problem> {
    context.sign_in.as_ref().ok_or_else(|| {
        let fix = "set --cookie-password, and --oidc-issuer or --admin-email";
        Problem::new(&kind::NO_SIGN_IN, "no cookie password is set", fix)
    })
}

/// How one can sign in.
#[utoipa::path(get, operation_id = "show_sign_in", path = "/api/auth/config", tag = "sign-in", security(()),
    responses((status = OK, body = AuthConfig), (status = "default", body = ProblemBody)))]
pub(super) async fn config(State(context): State<Shared>) -> Answer<AuthConfig> {
    let sign_in = context.sign_in.as_ref();
    let providers = sign_in.map_or(&[][..], |it| it.oidc.providers());
    let view = |provider: &Provider| ProviderView {
        name: provider.client.name.clone(),
        title: provider.client.title.clone(),
        login_url: oidc::login_url(provider),
    };
    Answer(AuthConfig {
        break_glass: sign_in.is_some_and(|it| it.admin.is_some()),
        providers: providers.iter().map(view).collect(),
    })
}

/// The administrator's login that needs no identity provider. Every use is audited.
#[utoipa::path(post, operation_id = "login_break_glass", path = "/api/auth/login", tag = "sign-in", security(()),
    request_body = Login,
    responses(
        (status = OK, body = LoggedIn, headers(("Set-Cookie" = String, description = "The session."))),
        (status = "default", body = ProblemBody)))]
pub(super) async fn login(
    State(context): State<Shared>,
    request: Request,
) -> Result<Response, Problem> {
    let sign_in = sign_in(&context)?;
    let headers = request.headers().clone();
    // A page elsewhere signs nobody in; programs send no Origin.
    if headers.contains_key(header::ORIGIN) {
        own_origin(&context, &headers)?;
    }
    let cause = access::cause(&request, nobody(), "tcp");
    let Json(body): Json<Login> = Json::from_request(request, &()).await?;
    let now_ms = context.hub.now_ms();
    let address = address(&headers);
    if let Err(wait_s) = sign_in.attempts.admit(&address, now_ms) {
        context.metrics.break_glass("limited");
        let fix = format!("try again in {wait_s} s");
        let problem = Problem::new(&kind::TOO_MANY_LOGINS, format!("from {address}"), fix);
        return Err(problem.retry_after(wait_s));
    }
    let admin = sign_in.admin.as_ref();
    let is_admin = match admin {
        Some(admin) => admin.is(&body.email, body.password).await,
        None => false,
    };
    let known = admin.filter(|_| is_admin);
    let Some(admin) = known else {
        context.metrics.break_glass("denied");
        let code = kind::BAD_LOGIN.code;
        let (verb, outcome) = (Verb::BreakGlassLogin, Outcome::Denied);
        context.hub.logged_in(&cause, verb, outcome, code).await;
        tracing::warn!(address, "break-glass login refused");
        let fix = "use the email and password of --admin-email and --admin-password-hash";
        return Err(Problem::new(&kind::BAD_LOGIN, "a login", fix));
    };
    let cause = Cause {
        actor: Actor {
            sub: subject(admin.email()),
            email: admin.email().to_owned(),
            groups: Vec::new(),
        },
        ..cause
    };
    context.metrics.break_glass("success");
    let (verb, outcome) = (Verb::BreakGlassLogin, Outcome::Success);
    context.hub.logged_in(&cause, verb, outcome, "").await;
    tracing::warn!(address, "break-glass login: the administrator is in");
    begin(&context, sign_in, admin.email()).await
}

fn subject(email: &str) -> String {
    format!("{BREAK_GLASS}:{email}")
}

async fn begin(context: &Shared, sign_in: &SignIn, email: &str) -> Result<Response, Problem> {
    let (subject, now_ms) = (subject(email), context.hub.now_ms());
    // A store that does not answer keeps the administrator out of nothing but other sessions.
    let epoch = context.hub.session_epoch(&subject).await?;
    let session = Session {
        email: email.to_owned(),
        tier: Some(Tier::Admin),
        ..Session::of(subject.clone(), BREAK_GLASS.to_owned(), epoch)
    };
    let begun = sign_in.begin(session, now_ms / 1000);
    let (session, cookie) = begun
        .map_err(|why| Problem::new(&kind::BAD_LOGIN, why.to_string(), "shorten --admin-email"))?;
    let view = context.licensing.view(now_ms);
    let warning = view.login_warning.then(|| banner(&view)).flatten();
    let body = Answer(LoggedIn {
        actor: subject,
        tier: session.tier.map(Tier::as_str),
        expires_at: rfc3339(session.expires_unix_s * 1000),
        warning: warning.map(|banner| banner.text),
    });
    Ok(with_cookies(body.into_response(), [cookie]))
}

/// Ends the session of this browser, and says where it ends at the provider too. A form of a
/// page is sent there at once.
#[utoipa::path(post, operation_id = "logout", path = "/api/auth/logout", tag = "sign-in", security(()),
    responses(
        (status = OK, body = LoggedOut),
        (status = NO_CONTENT, description = "Nothing to end at a provider."),
        (status = SEE_OTHER, description = "A form of a page: the browser goes on."),
        (status = "default", body = ProblemBody)))]
pub(super) async fn logout(
    State(context): State<Shared>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    own_origin(&context, &headers)?;
    let end_session_url = oidc::end_session_url(&context, &headers).await;
    let response = match (page::is_wanted(&headers), end_session_url) {
        (true, url) => {
            let url = url.unwrap_or_else(|| LOGGED_OUT.to_owned());
            Redirect::to(&url).into_response()
        }
        (false, Some(end_session_url)) => Answer(LoggedOut { end_session_url }).into_response(),
        (false, None) => StatusCode::NO_CONTENT.into_response(),
    };
    Ok(with_cookies(response, SignIn::taken()))
}

const LOGGED_OUT: &str = "/api/auth/loggedout";

/// Where a browser ends that signed out.
#[utoipa::path(get, operation_id = "show_logged_out", path = "/api/auth/loggedout", tag = "sign-in", security(()),
    responses((status = OK, content_type = "text/html", body = String), (status = "default", body = ProblemBody)))]
pub(super) async fn logged_out() -> Html<&'static str> {
    Html("<!doctype html><html lang=\"en\"><title>Culvert</title><p>You are signed out.</html>\n")
}

/// Ends every session of whoever asks, in every browser.
#[utoipa::path(post, operation_id = "logout_everywhere", path = "/auth/logout/everywhere", tag = "sign-in",
    responses((status = NO_CONTENT), (status = "default", body = ProblemBody)))]
pub(super) async fn everywhere(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Extension(principal): Extension<Arc<Principal>>,
) -> Result<Response, Problem> {
    let Some(session) = &principal.session else {
        let fix = "revoke the token instead; only people have sessions";
        return Err(Problem::new(&kind::NO_SIGN_IN, "no session", fix));
    };
    context.hub.end_sessions(&cause, &session.subject).await?;
    Ok(with_cookies(
        StatusCode::NO_CONTENT.into_response(),
        SignIn::taken(),
    ))
}

/// The mode of all clusters; where they differ, each cluster's own page says its own.
fn mode(context: &Shared) -> &'static str {
    let clusters = context.hub.clusters();
    let mut modes = clusters.values().map(|cluster| cluster.spec.access.mode);
    let first = modes.next().unwrap_or_default();
    match modes.all(|mode| mode == first) {
        true => first.as_str(),
        false => "mixed",
    }
}

fn short(context: &Shared, cause: &Cause, principal: &Principal) -> WhoAmI {
    WhoAmI {
        actor: cause.actor.sub.clone(),
        audit_enabled: true,
        audit_scope: if Scope::Audit.is_in(&principal.scopes) {
            "all"
        } else {
            "self"
        },
        mode: mode(context),
        tier: principal.tier,
    }
}

/// Who one is.
#[utoipa::path(get, operation_id = "who_am_i", path = "/whoami", tag = "sign-in",
    responses((status = OK, body = WhoAmI), (status = "default", body = ProblemBody)))]
pub(super) async fn whoami(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Extension(principal): Extension<Arc<Principal>>,
) -> Answer<WhoAmI> {
    Answer(short(&context, &cause, &principal))
}

/// Who one is, in full.
#[utoipa::path(get, operation_id = "who_am_i_fully", path = "/auth/whoami", tag = "sign-in",
    responses((status = OK, body = WhoAmIFully), (status = "default", body = ProblemBody)))]
pub(super) async fn whoami_fully(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Extension(principal): Extension<Arc<Principal>>,
) -> Answer<WhoAmIFully> {
    let session = principal.session.as_ref();
    Answer(WhoAmIFully {
        subject: cause.actor.sub.clone(),
        email: cause.actor.email.clone(),
        groups: cause.actor.groups.clone(),
        authz_mode: mode(&context),
        expires_at: session.map(|it| rfc3339(it.expires_unix_s * 1000)),
        short: short(&context, &cause, &principal),
    })
}

fn with_cookies(mut response: Response, cookies: impl IntoIterator<Item = String>) -> Response {
    for cookie in cookies {
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
    }
    response
}

/// Whom a login comes from, as the hop before control says: control listens on loopback only.
pub(super) fn address(headers: &HeaderMap) -> String {
    let last = headers.get_all("x-forwarded-for").iter().next_back();
    let last = last.and_then(|list| list.to_str().ok());
    let last = last.and_then(|list| list.rsplit(',').next());
    let address = last.and_then(|text| text.trim().parse::<std::net::IpAddr>().ok());
    address.map_or_else(|| "this machine".to_owned(), |address| address.to_string())
}
