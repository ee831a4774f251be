//! The companion API that Radar connectors ask (C-10).

use axum::Json as Answer;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::bearer;
use super::problem::ProblemBody;
use super::times::rfc3339;
use super::{Problem, Shared, kind};
use crate::token;

/// What everybody may know of the hub.
#[derive(Serialize, ToSchema)]
#[schema(as = HubConfig)]
pub(super) struct Config {
    /// Where people find the hub; null when nobody said so.
    frontend_url: Option<String>,
}

/// How a cluster stands, for its own agents.
#[derive(Serialize, ToSchema)]
pub(super) struct AgentStatus {
    cluster_id: String,
    /// connected or disconnected.
    status: &'static str,
    last_connected_at: Option<String>,
}

/// Where the hub's pages are.
#[utoipa::path(get, operation_id = "show_config", path = "/api/config", tag = "companion", security(()),
    responses((status = OK, body = Config), (status = "default", body = ProblemBody)))]
pub(super) async fn config(State(context): State<Shared>) -> Answer<Config> {
    Answer(Config {
        frontend_url: context.public_url.clone(),
    })
}

/// The cluster that the bearer token belongs to.
#[utoipa::path(get, operation_id = "show_agent_status", path = "/api/agent/status", tag = "companion",
    security(("cluster_token" = [])),
    responses((status = OK, body = AgentStatus), (status = "default", body = ProblemBody)))]
pub(super) async fn agent_status(
    State(context): State<Shared>,
    headers: HeaderMap,
) -> Result<Answer<AgentStatus>, Problem> {
    let hub = &context.hub;
    let given = token::digest(bearer(&headers).unwrap_or_default());
    let cluster = hub.owner(&given).ok_or_else(|| {
        Problem::new(
            &kind::UNAUTHENTICATED,
            "no token, or one that is not known",
            "send Authorization: Bearer with a live token of the cluster",
        )
    })?;
    let (is_connected, seen) = hub.fleet(|fleet| {
        (
            fleet.connected(&cluster.id).next().is_some(),
            fleet.last_connected(&cluster.id),
        )
    });
    Ok(Answer(AgentStatus {
        cluster_id: cluster.id.to_string(),
        status: if is_connected {
            "connected"
        } else {
            "disconnected"
        },
        last_connected_at: seen.or(cluster.last_connected_unix_ms).map(rfc3339),
    }))
}
