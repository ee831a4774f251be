//! `/clusters`: the registered private sites.

use std::hash::Hash;
use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::body::{Id, Json, Page, PageParams, Params, cluster_id, of_data};
use super::problem::ProblemBody;
use super::times::rfc3339;
use super::{Problem, Shared};
use crate::audit::Cause;
use crate::cluster::{Cluster, Patch, Spec};
use crate::hub::Hub;

/// A cluster.
#[derive(Serialize, ToSchema)]
#[schema(as = Cluster)]
pub(super) struct ClusterView {
    id: String,
    #[serde(flatten)]
    spec: Spec,
    /// disabled, connected, disconnected or never_connected.
    status: &'static str,
    /// Tokens that open it now.
    tokens_live: usize,
    /// Agents connected now.
    agents: usize,
    /// RFC 3339; null when no agent was ever seen.
    last_connected_at: Option<String>,
    /// The registry file lists it; what the file says cannot be changed here.
    in_file: bool,
    /// Sessions below it are dead.
    epoch_floor: u64,
    created_at: String,
    updated_at: String,
}

/// A cluster to be registered.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that is read in two steps")]
pub(super) struct NewCluster {
    /// Lower-case letters, digits and inner hyphens, at most 63.
    id: String,
    #[serde(flatten)]
    spec: Patch,
}

/// What a revocation did.
#[derive(Serialize, ToSchema)]
pub(super) struct Revoked {
    cluster: String,
    /// Sessions below it are dead.
    epoch_floor: u64,
    /// Data planes that hold it have cut the sessions.
    generation: u64,
}

impl ClusterView {
    /// What is news when it changes.
    pub(super) fn standing(&self) -> impl Hash + '_ {
        let tokens = (self.tokens_live, self.epoch_floor);
        (
            self.status,
            self.agents,
            self.in_file,
            tokens,
            &self.updated_at,
        )
    }

    pub(super) fn of(hub: &Hub, cluster: &Cluster) -> Self {
        let (agents, seen) = hub.fleet(|fleet| {
            (
                fleet.connected(&cluster.id).count(),
                fleet.last_connected(&cluster.id),
            )
        });
        let last_connected = seen.or(cluster.last_connected_unix_ms);
        let status = match (cluster.spec.enabled, agents, last_connected) {
            (false, ..) => "disabled",
            (true, 1.., _) => "connected",
            (true, 0, Some(_)) => "disconnected",
            (true, 0, None) => "never_connected",
        };
        let now_ms = hub.now_ms();
        Self {
            id: cluster.id.to_string(),
            spec: cluster.spec.clone(),
            status,
            tokens_live: cluster
                .tokens
                .iter()
                .filter(|token| token.is_live(now_ms))
                .count(),
            agents,
            last_connected_at: last_connected.map(rfc3339),
            in_file: hub.is_listed(&cluster.id),
            epoch_floor: cluster.epoch_floor,
            created_at: rfc3339(cluster.created_unix_ms),
            updated_at: rfc3339(cluster.updated_unix_ms),
        }
    }
}

/// The clusters, by id.
#[utoipa::path(get, operation_id = "list_clusters", path = "/clusters", params(PageParams), tag = "clusters",
    responses((status = OK, body = Page<ClusterView>), (status = "default", body = ProblemBody)))]
pub(super) async fn list(
    State(context): State<Shared>,
    Params(page): Params<PageParams>,
) -> Result<Answer<Page<ClusterView>>, Problem> {
    let clusters = context.hub.clusters();
    let views = clusters
        .iter()
        .map(|(id, cluster)| (id.to_string(), ClusterView::of(&context.hub, cluster)));
    Ok(Answer(page.page(views)?))
}

/// Registers a cluster. It has no token yet: mint one.
#[utoipa::path(post, operation_id = "create_cluster", path = "/clusters", request_body = NewCluster, tag = "clusters",
    responses((status = CREATED, body = ClusterView), (status = "default", body = ProblemBody)))]
pub(super) async fn create(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Json(mut body): Json<serde_json::Map<String, Value>>,
) -> Result<(StatusCode, Answer<ClusterView>), Problem> {
    let id = match body.remove("id") {
        Some(Value::String(id)) => cluster_id(&id)?,
        Some(_) => return Err(Problem::field("id", "is not a text")),
        None => return Err(Problem::field("id", "is missing")),
    };
    let patch: Patch = serde_json::from_value(Value::Object(body))
        .map_err(|why| of_data(&why.to_string()).about(&id))?;
    let mut spec = Spec::default();
    patch.apply(&mut spec);
    let made = context.hub.create(&cause, id.clone(), spec).await;
    let cluster = made.map_err(|why| Problem::from(why).about(&id))?;
    Ok((
        StatusCode::CREATED,
        Answer(ClusterView::of(&context.hub, &cluster)),
    ))
}

/// One cluster.
#[utoipa::path(get, operation_id = "show_cluster", path = "/clusters/{id}", params(("id" = String, Path)), tag = "clusters",
    responses((status = OK, body = ClusterView), (status = "default", body = ProblemBody)))]
pub(super) async fn show(
    State(context): State<Shared>,
    Id(id): Id,
) -> Result<Answer<ClusterView>, Problem> {
    Ok(Answer(ClusterView::of(
        &context.hub,
        &*context.hub.cluster(&id)?,
    )))
}

/// Changes the fields that are given.
#[utoipa::path(patch, operation_id = "update_cluster", path = "/clusters/{id}", params(("id" = String, Path)), tag = "clusters",
    request_body = Patch,
    responses((status = OK, body = ClusterView), (status = "default", body = ProblemBody)))]
pub(super) async fn update(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Id(id): Id,
    Json(patch): Json<Patch>,
) -> Result<Answer<ClusterView>, Problem> {
    let cluster = context
        .hub
        .update(&cause, &id, |spec| patch.apply(spec))
        .await?;
    Ok(Answer(ClusterView::of(&context.hub, &cluster)))
}

/// Removes a cluster; its tokens, sessions and live streams end.
#[utoipa::path(delete, operation_id = "remove_cluster", path = "/clusters/{id}", params(("id" = String, Path)), tag = "clusters",
    responses((status = NO_CONTENT), (status = "default", body = ProblemBody)))]
pub(super) async fn remove(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Id(id): Id,
) -> Result<StatusCode, Problem> {
    context.hub.remove(&cause, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes every token of a cluster and cuts its sessions and live streams.
#[utoipa::path(post, operation_id = "revoke_cluster", path = "/clusters/{id}/revoke", params(("id" = String, Path)), tag = "tokens",
    responses((status = OK, body = Revoked), (status = "default", body = ProblemBody)))]
pub(super) async fn revoke(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Id(id): Id,
) -> Result<Answer<Revoked>, Problem> {
    let cluster = context.hub.revoke(&cause, &id).await?;
    Ok(Answer(Revoked {
        cluster: id.to_string(),
        epoch_floor: cluster.epoch_floor,
        generation: context.hub.generation().0,
    }))
}
