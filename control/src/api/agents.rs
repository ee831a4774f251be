//! `/agents`: who is connected where (C-35).

use std::collections::BTreeMap;

use axum::Json as Answer;
use axum::extract::State;
use culvert_proto::id::ClusterId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::body::{Page, PageParams, Params, cluster_id};
use super::problem::ProblemBody;
use super::times::known;
use super::{Problem, Shared};
use crate::fleet::{Agent, Presence};

/// An agent as last reported.
#[derive(Serialize, ToSchema)]
#[schema(as = Agent)]
pub(super) struct AgentView {
    cluster: String,
    /// UUID of the agent process; null on carriers that name none.
    instance: Option<String>,
    /// connected, unknown (its data plane does not report) or gone.
    state: &'static str,
    dataplane: String,
    epoch: u64,
    protocol: String,
    version: String,
    /// Null when not known.
    rtt_ms: Option<u32>,
    region: String,
    labels: BTreeMap<String, String>,
    address: String,
    streams: u32,
    /// Id of the token it came with.
    token_id: String,
    draining: bool,
    connected_at: Option<String>,
    last_seen_at: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AgentParams {
    /// Only agents of this cluster.
    cluster: Option<String>,
    /// Items at most, 1 to 1,000; 100 by default.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

impl From<&Agent> for AgentView {
    fn from(agent: &Agent) -> Self {
        let fact = &agent.fact;
        let labels = fact.labels.iter();
        Self {
            cluster: fact.cluster.to_string(),
            instance: (!fact.instance.is_none()).then(|| fact.instance.to_string()),
            state: match agent.presence {
                Presence::Connected => "connected",
                Presence::Unknown => "unknown",
                Presence::Gone => "gone",
            },
            dataplane: agent.dataplane.clone(),
            epoch: fact.epoch.0,
            protocol: fact.protocol.to_string(),
            version: fact.version.to_string(),
            rtt_ms: (fact.rtt_ms > 0).then_some(fact.rtt_ms),
            region: fact.region.to_string(),
            labels: labels
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            address: fact.address.to_string(),
            streams: fact.streams,
            token_id: fact.token_id.to_string(),
            draining: fact.draining,
            connected_at: known(fact.connected_unix_ms),
            last_seen_at: known(fact.last_seen_unix_ms),
        }
    }
}

/// Agents that are connected or were in the last 24 h, by cluster.
#[utoipa::path(get, operation_id = "list_agents", path = "/agents", params(AgentParams), tag = "fleet",
    responses((status = OK, body = Page<AgentView>), (status = "default", body = ProblemBody)))]
pub(super) async fn list(
    State(context): State<Shared>,
    Params(params): Params<AgentParams>,
) -> Result<Answer<Page<AgentView>>, Problem> {
    let AgentParams {
        cluster,
        limit,
        cursor,
    } = params;
    let cluster = cluster.as_deref().map(cluster_id).transpose()?;
    let wanted = |id: &ClusterId| cluster.as_ref().is_none_or(|wanted| wanted == id);
    let page = PageParams::new(limit, cursor);
    context.hub.fleet(|fleet| {
        let agents = fleet.agents().filter(|agent| wanted(&agent.fact.cluster));
        // A space sorts before every character of an id, as the fleet's own order does.
        let views = agents.map(|agent| {
            let key = format!("{} {}", agent.fact.cluster, agent.fact.instance);
            (key, AgentView::from(agent))
        });
        page.page(views).map(Answer)
    })
}
