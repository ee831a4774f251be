//! `/clusters/{id}/tokens` and rotation. A token's text appears once, in the
//! answer that made it.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::body::{Id, Json, Page, PageParams, Params};
use super::problem::ProblemBody;
use super::times::rfc3339;
use super::{Problem, Shared};
use crate::audit::Cause;
use crate::cluster::Token;
use crate::hub::{LIFE_MS_MAX, Minted};

/// Overlap of a rotation that names none: 24 h.
pub const OVERLAP_SECONDS_DEFAULT: u64 = 86_400;

/// A token, without its text.
#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub(super) struct TokenView {
    token_id: String,
    /// live, expiring, or pending_delivery.
    state: &'static str,
    created_at: String,
    /// Null when it has no end.
    expires_at: Option<String>,
    /// Null when it was never used.
    last_used_at: Option<String>,
}

/// A fresh token.
#[derive(Serialize, ToSchema)]
pub(super) struct MintedView {
    cluster: String,
    token_id: String,
    /// Shown this once.
    token: String,
    expires_at: Option<String>,
}

/// What a rotation did.
#[derive(Serialize, ToSchema)]
pub(super) struct Rotated {
    cluster: String,
    token_id: String,
    /// Shown this once; absent when it is delivered through the tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    expires_at: Option<String>,
    /// Older tokens open the cluster until then; null when they have ended, or
    /// when the overlap starts only once every agent stored the new token.
    old_valid_until: Option<String>,
    /// Whether the token travels through the tunnel.
    deliver: bool,
}

/// How long a token lives.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MintBody {
    /// Without end when absent.
    expires_in_seconds: Option<u64>,
}

/// How long older tokens live on.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RotateBody {
    /// 24 h when absent; 0 ends them at once.
    overlap_seconds: Option<u64>,
}

#[derive(Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RotateParams {
    /// End the older tokens at once.
    now: bool,
    /// Hand the token to connected agents over their sessions instead of
    /// showing it; the overlap starts once all of them have stored it.
    deliver: bool,
    /// As in the body.
    overlap_seconds: Option<u64>,
}

impl TokenView {
    fn of(token: &Token, last_used_unix_ms: Option<u64>) -> Self {
        let state = match (token.pending_overlap_ms, token.not_after_unix_ms) {
            (Some(_), _) => "pending_delivery",
            (None, Some(_)) => "expiring",
            (None, None) => "live",
        };
        Self {
            token_id: token.id.clone(),
            state,
            created_at: rfc3339(token.created_unix_ms),
            expires_at: token.not_after_unix_ms.map(rfc3339),
            last_used_at: last_used_unix_ms.or(token.last_used_unix_ms).map(rfc3339),
        }
    }
}

/// The live tokens of a cluster, oldest first.
#[utoipa::path(get, operation_id = "list_tokens", path = "/clusters/{id}/tokens", params(("id" = String, Path), PageParams),
    tag = "tokens",
    responses((status = OK, body = Page<TokenView>), (status = "default", body = ProblemBody)))]
pub(super) async fn list(
    State(context): State<Shared>,
    Id(id): Id,
    Params(page): Params<PageParams>,
) -> Result<Answer<Page<TokenView>>, Problem> {
    let hub = &context.hub;
    let cluster = hub.cluster(&id)?;
    let now_ms = hub.now_ms();
    let live = cluster.tokens.iter().filter(|token| token.is_live(now_ms));
    let views = live.enumerate().map(|(place, token)| {
        let used = hub.fleet(|fleet| fleet.last_used(&id, &token.id));
        (format!("{place:04}"), TokenView::of(token, used))
    });
    Ok(Answer(page.page(views)?))
}

/// Mints a further token.
#[utoipa::path(post, operation_id = "mint_token", path = "/clusters/{id}/tokens", params(("id" = String, Path)),
    tag = "tokens", request_body = MintBody,
    responses((status = CREATED, body = MintedView), (status = "default", body = ProblemBody)))]
pub(super) async fn mint(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Id(id): Id,
    Json(body): Json<MintBody>,
) -> Result<(StatusCode, Answer<MintedView>), Problem> {
    let life = body
        .expires_in_seconds
        .map(|s| milliseconds("expires_in_seconds", s))
        .transpose()?;
    if life == Some(0) {
        return Err(Problem::field(
            "expires_in_seconds",
            "is 0; leave it out for no end",
        ));
    }
    let minted = context.hub.mint(&cause, &id, life).await?;
    let view = MintedView {
        cluster: id.to_string(),
        expires_at: expiry(&minted),
        token: minted.text.expose().to_owned(),
        token_id: minted.id,
    };
    Ok((StatusCode::CREATED, Answer(view)))
}

/// Removes one token; sessions that came with it end.
#[utoipa::path(delete, operation_id = "remove_token", path = "/clusters/{id}/tokens/{token_id}", tag = "tokens",
    params(("id" = String, Path), ("token_id" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = ProblemBody)))]
pub(super) async fn remove(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Path((id, token_id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let id = super::body::cluster_id(&id)?;
    context.hub.remove_token(&cause, &id, &token_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Mints a token in place of the others, which live on for the overlap.
#[utoipa::path(post, operation_id = "rotate_token", path = "/clusters/{id}/rotate-token", tag = "tokens",
    params(("id" = String, Path), RotateParams), request_body = RotateBody,
    responses((status = OK, body = Rotated), (status = "default", body = ProblemBody)))]
pub(super) async fn rotate(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Id(id): Id,
    Params(params): Params<RotateParams>,
    Json(body): Json<RotateBody>,
) -> Result<Answer<Rotated>, Problem> {
    let asked = params.overlap_seconds.or(body.overlap_seconds);
    if params.now && asked.is_some_and(|seconds| seconds > 0) {
        return Err(Problem::field("overlap_seconds", "contradicts now=true"));
    }
    let overlap = if params.now {
        0
    } else {
        asked.unwrap_or(OVERLAP_SECONDS_DEFAULT)
    };
    let overlap_ms = milliseconds("overlap_seconds", overlap)?;
    let hub = &context.hub;
    if params.deliver {
        let cluster = hub.rotate_through_tunnel(&cause, &id, overlap_ms).await?;
        let fresh = cluster
            .tokens
            .iter()
            .find(|token| token.pending_overlap_ms.is_some());
        return Ok(Answer(Rotated {
            cluster: id.to_string(),
            token_id: fresh.map(|token| token.id.clone()).unwrap_or_default(),
            token: None,
            expires_at: None,
            old_valid_until: None,
            deliver: true,
        }));
    }
    let minted = hub.rotate(&cause, &id, overlap_ms).await?;
    let old = minted
        .cluster
        .tokens
        .iter()
        .filter(|token| token.id != minted.id);
    let until = old.filter_map(|token| token.not_after_unix_ms).max();
    Ok(Answer(Rotated {
        cluster: id.to_string(),
        expires_at: expiry(&minted),
        token: Some(minted.text.expose().to_owned()),
        token_id: minted.id,
        old_valid_until: until.map(rfc3339),
        deliver: false,
    }))
}

fn expiry(minted: &Minted) -> Option<String> {
    let token = minted
        .cluster
        .tokens
        .iter()
        .find(|token| token.id == minted.id);
    token.and_then(|token| token.not_after_unix_ms).map(rfc3339)
}

fn milliseconds(field: &str, seconds: u64) -> Result<u64, Problem> {
    let ms = seconds.checked_mul(1000).filter(|ms| *ms <= LIFE_MS_MAX);
    ms.ok_or_else(|| {
        let most = LIFE_MS_MAX / 1000;
        Problem::field(field, format!("is {seconds}; at most {most} s are allowed"))
    })
}
