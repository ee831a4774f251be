//! Signing in at an OpenID provider: the browser is sent there, and comes back.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use culvert_identity::{Login, Session, local_path};
use culvert_net::crypto::constant_time_eq;
use serde::Deserialize;
use url::form_urlencoded;
use utoipa::IntoParams;

use super::{LOGGED_OUT, address, sign_in, with_cookies};
use crate::api::access::{self, nobody};
use crate::api::body::Params;
use crate::api::problem::ProblemBody;
use crate::api::{Problem, Shared, kind, page};
use crate::audit::{Actor, Cause, Outcome, Verb};
use crate::identity::{Came, OidcError, Person, Provider, SignIn};

const AGAIN: &str = "start again at /api/auth/login";
/// Longest reason of a provider that is repeated, in characters.
const REASON_CHARS_MAX: usize = 200;

/// Where a sign-in begins and ends.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct StartParams {
    /// Name of the provider; may be left out where there is one, or where people choose.
    provider: Option<String>,
    /// Path of this host where the browser ends; `/` by default.
    r#return: Option<String>,
}

/// What the provider sends back; it may add more.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct CallbackParams {
    state: Option<String>,
    code: Option<String>,
    iss: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// Sends the browser to the provider; where there are several and none is named, people choose.
#[utoipa::path(get, operation_id = "start_login", path = "/api/auth/login", tag = "sign-in", security(()),
    params(StartParams),
    responses(
        (status = SEE_OTHER, description = "To the provider.", headers(("Location" = String))),
        (status = OK, description = "A page to choose a provider on.", content_type = "text/html", body = String),
        (status = "default", body = ProblemBody)))]
pub(in crate::api) async fn start(
    State(context): State<Shared>,
    headers: HeaderMap,
    params: Result<Params<StartParams>, Problem>,
) -> Result<Response, Problem> {
    let asked = asked(&context, &headers, params);
    let (name, sent) = match asked {
        Ok(Asked::Choice(page)) => return Ok(page),
        Ok(Asked::Login(sign_in, provider, path)) => {
            let sent = sent(&context, sign_in, provider, &path).await;
            (provider.client.name.as_str(), sent)
        }
        Err(problem) => ("", Err(problem)),
    };
    sent.map_err(|problem| {
        context.metrics.login(name, problem.code());
        problem.for_people(&headers)
    })
}

/// Where somebody wants to sign in, and where that leads; or the page to choose on.
enum Asked<'a> {
    Login(&'a SignIn, &'a Provider, String),
    Choice(Response),
}

fn asked<'a>(
    context: &'a Shared,
    headers: &HeaderMap,
    params: Result<Params<StartParams>, Problem>,
) -> Result<Asked<'a>, Problem> {
    let Params(params) = params?;
    let sign_in = sign_in(context)?;
    let path = params.r#return.as_deref().unwrap_or("/");
    let path = local_path(path).ok_or_else(|| {
        let why = "is no path of this host; wanted one slash, then visible ASCII";
        Problem::field("return", why)
    })?;
    let is_open = params.provider.is_none() && sign_in.oidc.providers().len() > 1;
    // A page costs nobody anything: what counts is the sign-in that begins behind it.
    if is_open && page::is_wanted(headers) {
        return Ok(Asked::Choice(choice(sign_in, path)));
    }
    admit(context, sign_in, headers)?;
    let provider = provider(sign_in, params.provider.as_deref())?;
    Ok(Asked::Login(sign_in, provider, path.to_owned()))
}

/// Where a browser begins to sign in at a provider.
pub(super) fn login_url(provider: &Provider) -> String {
    format!("/api/auth/login?provider={}", provider.client.name)
}

fn choice(sign_in: &SignIn, path: &str) -> Response {
    let path: String = form_urlencoded::byte_serialize(path.as_bytes()).collect();
    let links = sign_in.oidc.providers().iter().map(|provider| {
        let url = format!("{}&return={path}", login_url(provider));
        (provider.client.title.as_str(), url)
    });
    page::choice(&links.collect::<Vec<_>>()).into_response()
}

async fn sent(
    context: &Shared,
    sign_in: &SignIn,
    provider: &Provider,
    path: &str,
) -> Result<Response, Problem> {
    let _turn = sign_in.oidc.turn().map_err(|why| of(&why, provider))?;
    let (metrics, now_ms) = (&context.metrics, context.hub.now_ms());
    let started = provider.start(path, metrics, now_ms).await;
    let (url, login) = started.map_err(|why| of(&why, provider))?;
    let cookie = sign_in.login_cookie(&login);
    let cookie = cookie.map_err(|why| Problem::field("return", why.to_string()))?;
    Ok(with_cookies(Redirect::to(&url).into_response(), [cookie]))
}

/// Takes the browser back, and begins its session.
#[utoipa::path(get, operation_id = "finish_login", path = "/api/auth/callback", tag = "sign-in", security(()),
    params(CallbackParams),
    responses(
        (status = SEE_OTHER, description = "To where the sign-in began.", headers(("Location" = String))),
        (status = "default", body = ProblemBody)))]
pub(in crate::api) async fn callback(
    State(context): State<Shared>,
    params: Result<Params<CallbackParams>, Problem>,
    request: Request,
) -> Response {
    let cause = access::cause(&request, nobody(), "tcp");
    let headers = request.headers();
    let (name, came) = match on_its_way(&context, headers, params) {
        Ok((sign_in, provider, login, params)) => {
            let came = back(&context, sign_in, provider, &login, &params, cause).await;
            (provider.client.name.as_str(), came)
        }
        Err(problem) => ("", Err(problem)),
    };
    let result = came.as_ref().map_or_else(Problem::code, |_| "success");
    context.metrics.login(name, result);
    let response = came.unwrap_or_else(|problem| problem.for_people(headers).into_response());
    // However it ended, this sign-in is over.
    match response.headers().contains_key(header::SET_COOKIE) {
        true => response,
        false => with_cookies(response, [SignIn::taken_login()]),
    }
}

/// The same by the name that other hubs give it (P-03).
#[utoipa::path(get, operation_id = "finish_login_of_others", path = "/api/auth/oidc/callback", tag = "sign-in",
    security(()), params(CallbackParams),
    responses(
        (status = SEE_OTHER, description = "To where the sign-in began.", headers(("Location" = String))),
        (status = "default", body = ProblemBody)))]
pub(in crate::api) async fn callback_of_others(
    context: State<Shared>,
    params: Result<Params<CallbackParams>, Problem>,
    request: Request,
) -> Response {
    callback(context, params, request).await
}

/// The sign-in that comes back with this request, and what came with it.
fn on_its_way<'a>(
    context: &'a Shared,
    headers: &HeaderMap,
    params: Result<Params<CallbackParams>, Problem>,
) -> Result<(&'a SignIn, &'a Provider, Login, CallbackParams), Problem> {
    let Params(params) = params?;
    let sign_in = sign_in(context)?;
    admit(context, sign_in, headers)?;
    let login = login_of(context, sign_in, headers, params.state.as_deref())?;
    let provider = provider(sign_in, Some(&login.provider))?;
    Ok((sign_in, provider, login, params))
}

async fn back(
    context: &Shared,
    sign_in: &SignIn,
    provider: &Provider,
    login: &Login,
    params: &CallbackParams,
    cause: Cause,
) -> Result<Response, Problem> {
    let came = async {
        let person = person(context, sign_in, provider, login, params).await;
        let person = person.map_err(|problem| (problem, None))?;
        match begin(context, sign_in, provider, &person).await {
            Ok(cookie) => Ok((person, cookie)),
            Err(problem) => Err((problem, Some(person))),
        }
    };
    match came.await {
        Ok((person, cookie)) => {
            let cause = by(cause, Some(&person));
            let (verb, outcome) = (Verb::Login, Outcome::Success);
            context.hub.logged_in(&cause, verb, outcome, "").await;
            let (provider, subject) = (&provider.client.name, person.subject);
            tracing::info!(provider, subject, "signed in");
            let cookies = [cookie, SignIn::taken_login()];
            let response = Redirect::to(&login.path).into_response();
            Ok(with_cookies(response, cookies))
        }
        Err((problem, person)) => {
            let cause = by(cause, person.as_ref());
            let outcome = match problem.is_of_server() {
                true => Outcome::Failure,
                false => Outcome::Denied,
            };
            // Whoever comes back in vain has shown nothing: some of the rows are enough.
            if context.unknown.admits(context.hub.now_ms()) {
                let code = problem.code();
                let verb = Verb::Login;
                context.hub.logged_in(&cause, verb, outcome, code).await;
            }
            Err(problem)
        }
    }
}

/// The sign-in that this browser is on, if `state` is its own and comes back for the first time.
fn login_of(
    context: &Shared,
    sign_in: &SignIn,
    headers: &HeaderMap,
    state: Option<&str>,
) -> Result<Login, Problem> {
    let lost = |seen: String| Problem::new(&kind::LOGIN_LOST, seen, AGAIN);
    let now_s = context.hub.now_ms() / 1000;
    let cookies = headers.get(header::COOKIE);
    let cookies = cookies.and_then(|cookies| cookies.to_str().ok());
    let login = cookies.and_then(|cookies| sign_in.login(cookies, now_s));
    let login = login.ok_or_else(|| lost("no cookie of a sign-in".to_owned()))?;
    let login = login.map_err(|why| lost(format!("the cookie of the sign-in: {why}")))?;
    let state = state.unwrap_or_default();
    if !constant_time_eq(state.as_bytes(), login.state.as_bytes()) {
        return Err(lost(
            "state is not the one of this browser's sign-in".to_owned(),
        ));
    }
    if !sign_in.oidc.take(state, login.expires_unix_s, now_s) {
        return Err(lost("this sign-in came back before".to_owned()));
    }
    Ok(login)
}

/// Who it is, says the provider.
async fn person(
    context: &Shared,
    sign_in: &SignIn,
    provider: &Provider,
    login: &Login,
    params: &CallbackParams,
) -> Result<Person, Problem> {
    let denied = |error: &str| {
        let why = params.error_description.as_deref().unwrap_or_default();
        let seen: String = format!("{error}: {why}")
            .chars()
            .filter(|c| !c.is_control())
            .take(REASON_CHARS_MAX)
            .collect();
        let fix = "ask who runs the identity provider, or try again";
        Problem::new(&kind::LOGIN_DENIED, seen, fix)
    };
    if let Some(error) = &params.error {
        return Err(denied(error));
    }
    let Some(code) = params.code.as_deref().filter(|code| !code.is_empty()) else {
        return Err(Problem::new(&kind::LOGIN_CODE, "no code in the URL", AGAIN));
    };
    let came = Came {
        code,
        issuer: params.iss.as_deref(),
    };
    let finished = async {
        let _turn = sign_in.oidc.turn()?;
        let (metrics, now_ms) = (&context.metrics, context.hub.now_ms());
        provider.finish(login, came, metrics, now_ms).await
    };
    finished.await.map_err(|why| of(&why, provider))
}

async fn begin(
    context: &Shared,
    sign_in: &SignIn,
    provider: &Provider,
    person: &Person,
) -> Result<String, Problem> {
    let epoch = context.hub.session_epoch(&person.subject).await?;
    let name = provider.client.name.clone();
    let session = Session {
        email: person.email.clone(),
        groups: person.groups.clone(),
        tier: sign_in.tiers.of(&person.subject, &person.groups),
        ..Session::of(person.subject.clone(), name, epoch)
    };
    let begun = sign_in.begin(session, context.hub.now_ms() / 1000);
    let (_, cookie) = begun.map_err(|why| {
        let fix = "name the groups that matter here in --oidc-groups-filter";
        Problem::new(&kind::TOO_MANY_GROUPS, why.to_string(), fix)
    })?;
    Ok(cookie)
}

/// Where the session of this browser ends at its provider, if its provider says where.
pub(super) async fn end_session_url(context: &Shared, headers: &HeaderMap) -> Option<String> {
    let sign_in = context.sign_in.as_ref()?;
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    let session = sign_in
        .session(cookies, context.hub.now_ms() / 1000)?
        .ok()?;
    let provider = sign_in.oidc.find(Some(&session.provider))?;
    let own = context.public_url.as_deref()?;
    provider.logout_url(&format!("{own}{LOGGED_OUT}")).await
}

fn admit(context: &Shared, sign_in: &SignIn, headers: &HeaderMap) -> Result<(), Problem> {
    let address = address(headers);
    let admitted = sign_in.oidc.attempts.admit(&address, context.hub.now_ms());
    admitted.map_err(|wait_s| {
        let fix = format!("try again in {wait_s} s");
        let problem = Problem::new(&kind::TOO_MANY_LOGINS, format!("from {address}"), fix);
        problem.retry_after(wait_s)
    })
}

fn provider<'a>(sign_in: &'a SignIn, name: Option<&str>) -> Result<&'a Provider, Problem> {
    sign_in.oidc.find(name).ok_or_else(|| {
        let all = sign_in.oidc.providers().iter();
        let all: Vec<_> = all.map(|it| it.client.name.as_str()).collect();
        let seen = format!("provider {:?}", name.unwrap_or_default());
        let fix = match all.is_empty() {
            true => "set --oidc-issuer and --oidc-client-id".to_owned(),
            false => format!("say provider= one of: {}", all.join(", ")),
        };
        Problem::new(&kind::UNKNOWN_PROVIDER, seen, fix)
    })
}

fn by(cause: Cause, person: Option<&Person>) -> Cause {
    let actor = person.map(|person| Actor {
        sub: person.subject.clone(),
        email: person.email.clone(),
        groups: person.groups.clone(),
    });
    Cause {
        actor: actor.unwrap_or_else(nobody),
        ..cause
    }
}

/// What a provider's answer means to whoever signs in.
fn of(why: &OidcError, provider: &Provider) -> Problem {
    let seen = format!("{}: {why}", provider.client.issuer.as_str());
    match why {
        OidcError::Unreachable(_) => {
            let fix = "wait and try again; sessions that have begun go on, and the administrator's login works";
            Problem::new(&kind::IDP_UNREACHABLE, seen, fix).retry_after(10)
        }
        OidcError::Busy => Problem::new(&kind::BUSY, seen, "try again in some seconds"),
        OidcError::Code(_) => Problem::new(&kind::LOGIN_CODE, seen, AGAIN),
        OidcError::OtherIssuer { .. } => Problem::new(&kind::LOGIN_ISSUER, seen, AGAIN),
        OidcError::Broken(_) | OidcError::Token(_) => {
            let fix = "compare --oidc-issuer and --oidc-client-id with the provider's own settings, and both clocks";
            Problem::new(&kind::IDP_ANSWER, seen, fix)
        }
        OidcError::Claims(_) => {
            let fix = "ask who runs the identity provider; see --oidc-groups-claim, --oidc-groups-filter and --oidc-username-claim";
            Problem::new(&kind::BAD_CLAIMS, seen, fix)
        }
    }
}
