//! `/clusters/{id}/routes`: ways to services beside HTTP.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use culvert_config::clusters::route;
use culvert_proto::id::ClusterId;
use culvert_proto::update::RouteKind;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{Id, Json, Page, PageParams, Params, cluster_id};
use super::problem::{Field, ProblemBody};
use super::times::rfc3339;
use super::{Problem, Shared};
use crate::audit::Cause;
use crate::cluster::{Cluster, Route};
use crate::hub::Hub;
use crate::registry::file::is_of_file;

/// A way to a service.
#[derive(Serialize, ToSchema)]
#[schema(as = Route)]
pub(super) struct RouteView {
    route_id: String,
    cluster: String,
    /// As the agents call it.
    service: String,
    /// Everyone who connects to this `IP:PORT` of a data plane is led there.
    tcp: Option<String>,
    /// Everyone whose TLS asks for this server name is led there.
    sealed: Option<String>,
    /// Where the server name is served; null = the public listener.
    addr: Option<String>,
    /// The registry file lists it; it cannot be removed here.
    in_file: bool,
    created_at: String,
}

/// A way to a service: one of `tcp` and `sealed`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRoute {
    /// As the agents call it: lower-case letters, digits and inner `-`, `_`, `.`, at most 63.
    service: String,
    /// `IP:PORT` of the data planes.
    tcp: Option<String>,
    /// Server name, for example db.example.com or *.example.com.
    sealed: Option<String>,
    /// With `sealed`: `IP:PORT` of its own instead of the public listener.
    addr: Option<String>,
}

impl RouteView {
    fn of(hub: &Hub, cluster: &ClusterId, route: &Route) -> Self {
        let (tcp, sealed, addr) = match &route.route.kind {
            RouteKind::Tcp { addr } => (Some(addr.to_string()), None, None),
            RouteKind::Sealed { sni, addr } => {
                let addr = addr.as_ref().map(ToString::to_string);
                (None, Some(sni.to_string()), addr)
            }
        };
        Self {
            route_id: route.id.clone(),
            cluster: cluster.to_string(),
            service: route.route.service.to_string(),
            tcp,
            sealed,
            addr,
            in_file: is_of_file(&route.id) && hub.is_listed(cluster),
            created_at: rfc3339(route.created_unix_ms),
        }
    }
}

/// Keys in rising order, so that pages follow each other.
fn keyed(hub: &Hub, cluster: &Cluster) -> impl Iterator<Item = (String, RouteView)> {
    let routes = cluster.routes.iter().enumerate();
    routes.map(|(place, route)| {
        let view = RouteView::of(hub, &cluster.id, route);
        // A space sorts before every character of an id.
        (format!("{} {place:04}", cluster.id), view)
    })
}

/// The routes of all clusters, by cluster.
#[utoipa::path(get, operation_id = "list_all_routes", path = "/routes", params(PageParams), tag = "routes",
    responses((status = OK, body = Page<RouteView>), (status = "default", body = ProblemBody)))]
pub(super) async fn all(
    State(context): State<Shared>,
    Params(page): Params<PageParams>,
) -> Result<Answer<Page<RouteView>>, Problem> {
    let clusters = context.hub.clusters();
    let views = clusters
        .values()
        .flat_map(|cluster| keyed(&context.hub, cluster));
    Ok(Answer(page.page(views)?))
}

/// The routes of a cluster, oldest first.
#[utoipa::path(get, operation_id = "list_routes", path = "/clusters/{id}/routes", params(("id" = String, Path), PageParams),
    tag = "routes",
    responses((status = OK, body = Page<RouteView>), (status = "default", body = ProblemBody)))]
pub(super) async fn list(
    State(context): State<Shared>,
    Id(id): Id,
    Params(page): Params<PageParams>,
) -> Result<Answer<Page<RouteView>>, Problem> {
    let cluster = context.hub.cluster(&id)?;
    Ok(Answer(page.page(keyed(&context.hub, &cluster))?))
}

/// Adds a route. An address is for one route, a server name on it too, over all clusters.
#[utoipa::path(post, operation_id = "create_route", path = "/clusters/{id}/routes", params(("id" = String, Path)),
    tag = "routes", request_body = NewRoute,
    responses((status = CREATED, body = RouteView), (status = "default", body = ProblemBody)))]
pub(super) async fn create(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Id(id): Id,
    Json(body): Json<NewRoute>,
) -> Result<(StatusCode, Answer<RouteView>), Problem> {
    let NewRoute {
        service,
        tcp,
        sealed,
        addr,
    } = body;
    let wanted = route(&service, tcp.as_deref(), sealed.as_deref(), addr.as_deref());
    let wanted = wanted.map_err(|problems| {
        let field = |(field, why): (&str, String)| Field {
            field: field.to_owned(),
            why,
        };
        Problem::fields(problems.into_iter().map(field).collect())
    })?;
    let made = context.hub.add_route(&cause, &id, wanted).await?;
    Ok((
        StatusCode::CREATED,
        Answer(RouteView::of(&context.hub, &id, &made)),
    ))
}

/// Removes a route; its connections end.
#[utoipa::path(delete, operation_id = "remove_route", path = "/clusters/{id}/routes/{route_id}", tag = "routes",
    params(("id" = String, Path), ("route_id" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = ProblemBody)))]
pub(super) async fn remove(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Path((id, route_id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let id = cluster_id(&id)?;
    context.hub.remove_route(&cause, &id, &route_id).await?;
    Ok(StatusCode::NO_CONTENT)
}
