//! `/api-tokens`: what machines show to this API.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{Json, Page, PageParams, Params};
use super::problem::{Field, ProblemBody};
use super::times::rfc3339;
use super::{Problem, Shared};
use crate::audit::Cause;
use crate::identity::{ApiToken, Scope};

/// Longest life, in seconds.
const LIFE_SECONDS_MAX: u64 = 366 * 86_400;
const LIFE_SECONDS_DEFAULT: u64 = 90 * 86_400;
/// Longest name, in characters.
const NAME_CHARS_MAX: usize = 64;

/// What a new token is for.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewApiToken)]
#[serde(deny_unknown_fields)]
pub(super) struct New {
    /// For people.
    name: String,
    /// read, audit, clusters, tokens or admin.
    scopes: Vec<String>,
    /// Life, at most 366 days; 90 days by default.
    expires_in_seconds: Option<u64>,
}

/// A token; its text is not known any more.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiToken)]
pub(super) struct View {
    token_id: String,
    name: String,
    scopes: Vec<&'static str>,
    created_at: String,
    expires_at: String,
}

/// A fresh token: its text is shown this once.
#[derive(Serialize, ToSchema)]
#[schema(as = MintedApiToken)]
pub(super) struct Minted {
    token: String,
    #[serde(flatten)]
    view: View,
}

impl From<ApiToken> for View {
    fn from(token: ApiToken) -> Self {
        Self {
            token_id: token.id,
            name: token.name,
            scopes: token.scopes.iter().map(|scope| scope.as_str()).collect(),
            created_at: rfc3339(token.created_unix_ms),
            expires_at: rfc3339(token.not_after_unix_ms),
        }
    }
}

/// Live API tokens, by id.
#[utoipa::path(get, operation_id = "list_api_tokens", path = "/api-tokens", params(PageParams), tag = "API tokens",
    responses((status = OK, body = Page<View>), (status = "default", body = ProblemBody)))]
pub(super) async fn list(
    State(context): State<Shared>,
    Params(page): Params<PageParams>,
) -> Result<Answer<Page<View>>, Problem> {
    let tokens = context.hub.api_tokens().await?.into_iter();
    Ok(Answer(page.page(
        tokens.map(|token| (token.id.clone(), View::from(token))),
    )?))
}

/// Mints a token for a machine.
#[utoipa::path(post, operation_id = "mint_api_token", path = "/api-tokens", request_body = New, tag = "API tokens",
    responses((status = CREATED, body = Minted), (status = "default", body = ProblemBody)))]
pub(super) async fn mint(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Json(body): Json<New>,
) -> Result<(StatusCode, Answer<Minted>), Problem> {
    let mut wrong = Vec::new();
    let mut say = |field: &str, why: String| {
        wrong.push(Field {
            field: field.to_owned(),
            why,
        });
    };
    let length = body.name.chars().count();
    if !(1..=NAME_CHARS_MAX).contains(&length) || body.name.chars().any(char::is_control) {
        say(
            "name",
            format!("wants 1 to {NAME_CHARS_MAX} printable characters"),
        );
    }
    let scopes: Option<BTreeSet<Scope>> =
        body.scopes.iter().map(|word| Scope::parse(word)).collect();
    let scopes = scopes.unwrap_or_default();
    if scopes.is_empty() {
        let known = Scope::ALL.map(Scope::as_str).join(", ");
        say("scopes", format!("wants one or more of {known}"));
    }
    let seconds = body.expires_in_seconds.unwrap_or(LIFE_SECONDS_DEFAULT);
    if !(1..=LIFE_SECONDS_MAX).contains(&seconds) {
        let why = format!("is {seconds}; 1 to {LIFE_SECONDS_MAX} s are allowed");
        say("expires_in_seconds", why);
    }
    if !wrong.is_empty() {
        return Err(Problem::fields(wrong));
    }
    let minted = context
        .hub
        .mint_api_token(&cause, &body.name, scopes, seconds * 1000);
    let (text, token) = minted.await?;
    let minted = Minted {
        token: text.expose().to_owned(),
        view: token.into(),
    };
    Ok((StatusCode::CREATED, Answer(minted)))
}

/// Takes a token; it opens nothing from now on.
#[utoipa::path(delete, operation_id = "revoke_api_token", path = "/api-tokens/{token_id}", tag = "API tokens",
    params(("token_id" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = ProblemBody)))]
pub(super) async fn revoke(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Path(token_id): Path<String>,
) -> Result<StatusCode, Problem> {
    context.hub.revoke_api_token(&cause, &token_id).await?;
    Ok(StatusCode::NO_CONTENT)
}
