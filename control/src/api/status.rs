//! `/status` and `/dataplanes`: the hub at a glance.

use axum::Json as Answer;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::{Page, PageParams, Params};
use super::license::{BannerView, banner};
use super::problem::ProblemBody;
use super::times::rfc3339;
use super::{Problem, Shared};
use crate::fleet::{Dataplane, Presence};

/// The hub at a glance.
#[derive(Serialize, ToSchema)]
pub(super) struct Status {
    version: &'static str,
    hub_id: String,
    /// The newest generation.
    generation: u64,
    clusters: usize,
    /// Agents connected.
    agents: usize,
    /// Data planes connected.
    dataplanes: usize,
    public_url: Option<String>,
    store: &'static str,
    /// The licence's standing.
    license: &'static str,
    /// The licence's banner; null when there is nothing to say.
    banner: Option<BannerView>,
    started_at: String,
}

/// A data plane as last reported.
#[derive(Serialize, ToSchema)]
#[schema(as = Dataplane)]
pub(super) struct DataplaneView {
    id: String,
    connected: bool,
    /// The other end of its link.
    peer: String,
    /// The generation it serves.
    generation: u64,
    /// Updates it has yet to take.
    generations_behind: u64,
    version: String,
    draining: bool,
    sessions: usize,
    last_report_at: Option<String>,
}

/// The hub at a glance.
#[utoipa::path(get, operation_id = "show_status", path = "/status", tag = "fleet",
    responses((status = OK, body = Status), (status = "default", body = ProblemBody)))]
pub(super) async fn show(State(context): State<Shared>) -> Answer<Status> {
    let hub = &context.hub;
    let (agents, dataplanes) = hub.fleet(|fleet| {
        let connected = |presence| presence == Presence::Connected;
        let agents = fleet
            .agents()
            .filter(|agent| connected(agent.presence))
            .count();
        (
            agents,
            fleet
                .dataplanes()
                .filter(|plane| plane.link.is_some())
                .count(),
        )
    });
    let view = context.licensing.view(hub.now_ms());
    Answer(Status {
        version: env!("CARGO_PKG_VERSION"),
        hub_id: hub.id().to_owned(),
        generation: hub.generation().0,
        clusters: hub.clusters().len(),
        agents,
        dataplanes,
        public_url: context.public_url.clone(),
        store: hub.store_kind(),
        license: view.standing.as_str(),
        banner: banner(&view),
        started_at: rfc3339(hub.started_unix_ms()),
    })
}

/// Data planes that are connected or were in the last 24 h.
#[utoipa::path(get, operation_id = "list_dataplanes", path = "/dataplanes", params(PageParams), tag = "fleet",
    responses((status = OK, body = Page<DataplaneView>), (status = "default", body = ProblemBody)))]
pub(super) async fn dataplanes(
    State(context): State<Shared>,
    Params(page): Params<PageParams>,
) -> Result<Answer<Page<DataplaneView>>, Problem> {
    let newest = context.hub.generation().0;
    context.hub.fleet(|fleet| {
        let views = fleet
            .dataplanes()
            .map(|plane| (plane.id.clone(), view(plane, newest)));
        page.page(views).map(Answer)
    })
}

fn view(plane: &Dataplane, newest: u64) -> DataplaneView {
    DataplaneView {
        id: plane.id.clone(),
        connected: plane.link.is_some(),
        peer: plane.peer.clone(),
        generation: plane.generation.0,
        generations_behind: newest.saturating_sub(plane.generation.0),
        version: plane.version.clone(),
        draining: plane.draining,
        sessions: plane.sessions,
        last_report_at: plane.last_report_unix_ms.map(rfc3339),
    }
}
