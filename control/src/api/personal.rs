//! `/personal-tokens`: what people show to reach services with `culvert-agent forward`.
//! A token's text appears once, in the answer that made it.

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
use crate::hub::Hub;
use crate::registry::file::is_of_file;
use crate::registry::personal::{Grants, Person, grants};

/// Longest life of a person's token in seconds, and the one that nobody named: 90 days.
pub const PERSONAL_LIFE_SECONDS_DEFAULT: u64 = 90 * 86_400;

/// A person's token, without its text.
#[derive(Serialize, ToSchema)]
#[schema(as = PersonalToken)]
pub(super) struct PersonalView {
    token_id: String,
    /// Whose it is.
    principal: String,
    /// What it reaches, as CLUSTER/SERVICE.
    grants: Vec<String>,
    /// The registry file lists it; it cannot be revoked here.
    in_file: bool,
    created_at: String,
    /// Null when it has no end.
    expires_at: Option<String>,
}

/// A fresh token of a person.
#[derive(Serialize, ToSchema)]
pub(super) struct PersonalMinted {
    token_id: String,
    /// Shown this once.
    token: String,
    principal: String,
    grants: Vec<String>,
    expires_at: String,
}

/// Who gets a token, and for what.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPersonal {
    /// Whose it is, for logs and audit: at most 255 bytes.
    principal: String,
    /// What it reaches, as CLUSTER/SERVICE; CLUSTER/* is every service of the cluster. 1 to 64.
    grants: Vec<String>,
    /// At most what control allows, and that when absent: 90 days unless configured.
    expires_in_seconds: Option<u64>,
}

fn written(grants: &Grants) -> Vec<String> {
    let all = grants.iter();
    all.flat_map(|(cluster, services)| {
        services
            .iter()
            .map(move |service| format!("{cluster}/{service}"))
    })
    .collect()
}

impl PersonalView {
    fn of(hub: &Hub, Person { any, grants }: Person) -> Self {
        let is_listed = grants.keys().any(|cluster| hub.is_listed(cluster));
        Self {
            token_id: any.token.id.to_string(),
            principal: any.token.principal.to_string(),
            grants: written(&grants),
            in_file: is_of_file(&any.token.id) && is_listed,
            created_at: rfc3339(any.created_unix_ms),
            expires_at: any.token.not_after_unix_ms.map(rfc3339),
        }
    }
}

/// Live tokens of people, by id.
#[utoipa::path(get, operation_id = "list_personal_tokens", path = "/personal-tokens", params(PageParams),
    tag = "personal tokens",
    responses((status = OK, body = Page<PersonalView>), (status = "default", body = ProblemBody)))]
pub(super) async fn list(
    State(context): State<Shared>,
    Params(page): Params<PageParams>,
) -> Result<Answer<Page<PersonalView>>, Problem> {
    let people = context.hub.personal_tokens().into_iter();
    let views = people.map(|(id, person)| (id.to_string(), PersonalView::of(&context.hub, person)));
    Ok(Answer(page.page(views)?))
}

/// Mints a token for a person.
#[utoipa::path(post, operation_id = "mint_personal_token", path = "/personal-tokens", request_body = NewPersonal,
    tag = "personal tokens",
    responses((status = CREATED, body = PersonalMinted), (status = "default", body = ProblemBody)))]
pub(super) async fn mint(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Json(body): Json<NewPersonal>,
) -> Result<(StatusCode, Answer<PersonalMinted>), Problem> {
    let most = context.personal_life_seconds;
    let seconds = body.expires_in_seconds.unwrap_or(most);
    let mut problems = Vec::new();
    if !(1..=most).contains(&seconds) {
        let why = format!("is {seconds}; 1 to {most} s are allowed");
        problems.push(("expires_in_seconds".to_owned(), why));
    }
    let grants = grants(&body.principal, &body.grants);
    problems.extend(grants.as_ref().err().cloned().into_iter().flatten());
    let grants = match grants {
        Ok(grants) if problems.is_empty() => grants,
        _ => {
            let field = |(field, why)| Field { field, why };
            return Err(Problem::fields(problems.into_iter().map(field).collect()));
        }
    };
    let minted = context
        .hub
        .mint_personal(&cause, &body.principal, &grants, seconds * 1000)
        .await?;
    let view = PersonalMinted {
        token_id: minted.id.to_string(),
        token: minted.text.expose().to_owned(),
        principal: body.principal,
        grants: written(&grants),
        expires_at: rfc3339(minted.not_after_unix_ms),
    };
    Ok((StatusCode::CREATED, Answer(view)))
}

/// Takes a person's token; what it opened ends.
#[utoipa::path(delete, operation_id = "revoke_personal_token", path = "/personal-tokens/{token_id}",
    tag = "personal tokens", params(("token_id" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = ProblemBody)))]
pub(super) async fn revoke(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Path(token_id): Path<String>,
) -> Result<StatusCode, Problem> {
    context.hub.revoke_personal(&cause, &token_id).await?;
    Ok(StatusCode::NO_CONTENT)
}
