//! `/connect/requests`: agents that have no token yet ask for one (C-11), and administrators
//! decide. Asking and fetching are open routes; the secret of a request lets its agent fetch.

pub(super) mod page;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Extension, FromRequest as _, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::{self, bearer, own_origin};
use super::auth::address;
use super::body::{Json, Page, PageParams, Params, cluster_id};
use super::problem::{Field, ProblemBody};
use super::times::rfc3339;
use super::{Problem, Shared, kind};
use crate::audit::{Actor, Cause};
use crate::cluster::{Patch, Spec};
use crate::connect::{
    Asked, ConnectRequest, Decision, LIFE_MS_DEFAULT, POLL_SECONDS, Stage, Standing, source,
};
use crate::hub::{Fetched, HubError};
use crate::identity::Attempts;
use crate::token;

/// Requests of an address, and of all, in a minute.
const ASKS_OF_ADDRESS_MAX: u32 = 5;
const ASKS_MAX: u32 = 60;
/// Fetches of an address, and of all, in a minute: each costs a read of the store. As many
/// requests as an address may have are asked about at their pace.
const POLLS_OF_ADDRESS_MAX: u32 = 120;
const POLLS_MAX: u32 = 3_000;
/// Who comes back sooner is told to slow down; a second is left to clocks and networks.
const GAP_MS_MIN: u64 = (POLL_SECONDS - 1) * 1_000;
/// Requests whose last fetch is remembered.
const GAPS_MAX: usize = 1_024;

/// How often agents ask, and how long their requests wait.
pub struct Connects {
    life_ms: Option<u64>,
    asks: Attempts,
    polls: Attempts,
    /// When each request was asked about last.
    last: Mutex<HashMap<String, u64>>,
}

/// What an agent says when it asks; nobody vouches for it.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewConnectRequest)]
pub(super) struct New {
    /// The cluster it would like to be of.
    #[serde(default, alias = "cluster_name")]
    cluster: String,
    #[serde(default)]
    agent_version: String,
    #[serde(default)]
    host: String,
}

/// A request that was taken.
#[derive(Serialize, ToSchema)]
#[schema(as = BegunConnectRequest)]
pub(super) struct Begun {
    request_id: String,
    /// Shown this once.
    device_secret: String,
    /// What the agent shows and the administrator compares.
    user_code: String,
    /// Where an administrator decides.
    connect_url: String,
    /// Seconds.
    expires_in: u64,
    /// Seconds.
    poll_interval: u64,
    /// Where agents find the hub.
    wss_url: String,
}

/// How a request stands, for its agent.
#[derive(Serialize, ToSchema)]
#[schema(as = PolledConnectRequest)]
pub(super) struct Polled {
    /// pending, approved, consumed or expired.
    status: &'static str,
    /// `denied` where an administrator ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    cluster_id: Option<String>,
    /// Given once.
    token: Option<String>,
    wss_url: String,
}

/// A request of an agent, for who decides. `cluster`, `agent_version` and `host` are what the
/// agent says of itself.
#[derive(Serialize, ToSchema)]
#[schema(as = ConnectRequest)]
pub(super) struct View {
    request_id: String,
    /// The agent shows the same.
    user_code: String,
    /// pending or approved; also denied in the answer to a decision.
    status: &'static str,
    cluster: String,
    agent_version: String,
    host: String,
    /// Where it asked from.
    address: String,
    /// The cluster it was approved for.
    cluster_id: Option<String>,
    decided_by: Option<String>,
    created_at: String,
    expires_at: String,
}

/// Which cluster the agent is of.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Approval {
    /// Its id.
    cluster: String,
    /// Registers it; else it has to be there.
    #[serde(default)]
    create: bool,
    /// With `create`: what is to be different from a plain cluster.
    spec: Option<Patch>,
}

impl Connects {
    /// Requests wait for `life_ms`; `None` = nobody can ask.
    #[must_use]
    pub fn new(life_ms: Option<u64>) -> Self {
        Self {
            life_ms,
            asks: Attempts::new(ASKS_OF_ADDRESS_MAX, ASKS_MAX),
            polls: Attempts::new(POLLS_OF_ADDRESS_MAX, POLLS_MAX),
            last: Mutex::default(),
        }
    }

    /// Whether a request is asked about at its pace.
    fn keeps_pace(&self, id: &str, now_ms: u64) -> bool {
        let mut last = self.last.lock();
        let is_recent = |at: &u64| now_ms.saturating_sub(*at) < GAP_MS_MIN;
        if last.len() >= GAPS_MAX {
            last.retain(|_, at| is_recent(at));
        }
        // Too many that are asked about right now: the next second has room again.
        if last.get(id).is_some_and(is_recent) || last.len() >= GAPS_MAX {
            return false;
        }
        last.insert(id.to_owned(), now_ms);
        true
    }
}

impl Default for Connects {
    fn default() -> Self {
        Self::new(Some(LIFE_MS_DEFAULT))
    }
}

impl From<ConnectRequest> for View {
    fn from(request: ConnectRequest) -> Self {
        let (status, cluster, by) = match request.stage {
            Stage::Pending => ("pending", None, None),
            Stage::Approved { cluster, by } => ("approved", Some(cluster), Some(by)),
            Stage::Denied { by } => ("denied", None, Some(by)),
            Stage::Consumed { cluster, by, .. } => ("consumed", Some(cluster), Some(by)),
        };
        Self {
            request_id: request.id,
            user_code: request.code,
            status,
            cluster: request.asked.cluster,
            agent_version: request.asked.version,
            host: request.asked.host,
            address: request.address,
            cluster_id: cluster.map(|id| id.to_string()),
            decided_by: by,
            created_at: rfc3339(request.created_unix_ms),
            expires_at: rfc3339(request.expires_unix_ms),
        }
    }
}

/// How long requests wait, and where people find the hub; neither on a hub that nobody can ask.
fn open(context: &Shared) -> Result<(u64, &str), Problem> {
    let closed = |seen: &str, fix: &str| Problem::new(&kind::NO_CONNECT, seen, fix);
    let life_ms = context.connect.life_ms.ok_or_else(|| {
        closed(
            "--connect-life off",
            "use a join string: culvert agent command",
        )
    })?;
    let url = context.public_url.as_deref();
    let url =
        url.ok_or_else(|| closed("no public URL is set", "start control with --public-url"))?;
    Ok((life_ms, url))
}

/// Where agents find the hub.
fn wss_url(public: &str) -> String {
    // Configuration lets in http and https alone.
    let rest = public.strip_prefix("http").unwrap_or(public);
    format!("ws{rest}/agent")
}

fn admit(attempts: &Attempts, headers: &HeaderMap, now_ms: u64) -> Result<String, Problem> {
    let address = address(headers);
    match attempts.admit(&source(&address), now_ms) {
        Ok(()) => Ok(address),
        Err(wait_s) => {
            let fix = format!("try again in {wait_s} s");
            let seen = format!("from {address}");
            Err(Problem::new(&kind::TOO_MANY_CONNECT_REQUESTS, seen, fix).retry_after(wait_s))
        }
    }
}

/// An agent asks. It shows the code, and comes back with the secret.
#[utoipa::path(post, operation_id = "ask_to_connect", path = "/connect/requests", tag = "connect requests",
    security(()), request_body = New,
    responses((status = CREATED, body = Begun), (status = "default", body = ProblemBody)))]
pub(super) async fn ask(
    State(context): State<Shared>,
    request: Request,
) -> Result<(StatusCode, Answer<Begun>), Problem> {
    let (life_ms, public) = open(&context)?;
    // A page elsewhere asks for nobody; programs send no Origin.
    if request.headers().contains_key(header::ORIGIN) {
        own_origin(&context, request.headers())?;
    }
    let address = admit(
        &context.connect.asks,
        request.headers(),
        context.hub.now_ms(),
    )?;
    let Json(body): Json<New> = Json::from_request(request, &()).await?;
    let asked = Asked::new(&body.cluster, &body.agent_version, &body.host);
    let asked = asked.map_err(|problems| {
        let field = |(field, why)| Field { field, why };
        Problem::fields(problems.into_iter().map(field).collect())
    })?;
    let taken = context.hub.ask_to_connect(asked, &address, life_ms).await;
    let (taken, secret) = taken?;
    let begun = Begun {
        connect_url: format!("{public}{}/{}", page::PATH, taken.id),
        request_id: taken.id,
        device_secret: secret.to_string(),
        user_code: taken.code,
        expires_in: life_ms / 1_000,
        poll_interval: POLL_SECONDS,
        wss_url: wss_url(public),
    };
    Ok((StatusCode::CREATED, Answer(begun)))
}

/// The agent comes back, with its secret as bearer token. What is unknown and what has another
/// secret look the same.
#[utoipa::path(get, operation_id = "poll_connect_request", path = "/connect/requests/{request_id}",
    tag = "connect requests", security(()), params(("request_id" = String, Path)),
    responses((status = OK, body = Polled), (status = "default", body = ProblemBody)))]
pub(super) async fn poll(
    State(context): State<Shared>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Answer<Polled>, Problem> {
    let (_, public) = open(&context)?;
    let (hub, now_ms) = (&context.hub, context.hub.now_ms());
    admit(&context.connect.polls, request.headers(), now_ms)?;
    let secret = token::digest(bearer(request.headers()).unwrap_or_default());
    let own = hub.own_connect_request(&id, &secret).await;
    let own = own.map_err(|why| match why {
        HubError::NoConnectRequest => {
            let fix = "let the agent ask anew: culvert-agent connect";
            Problem::new(&kind::UNKNOWN_CONNECT_REQUEST, "an id and a secret", fix)
        }
        why => why.into(),
    })?;
    if !context.connect.keeps_pace(&id, now_ms) {
        let seen = format!("asked again within {} s", GAP_MS_MIN / 1_000);
        let fix = format!("ask every {POLL_SECONDS} s, and 5 s later after this answer");
        return Err(Problem::new(&kind::SLOW_DOWN, seen, fix).retry_after(POLL_SECONDS));
    }
    let fetched = match own.standing(now_ms) {
        Standing::Approved(_) => {
            let agent = Actor {
                sub: format!("connect-request:{id}"),
                ..access::nobody()
            };
            let cause = access::cause(&request, agent, "tcp");
            hub.fetch_token(&cause, &id).await?
        }
        standing => Fetched::Standing(standing),
    };
    Ok(Answer(Polled::of(fetched, wss_url(public))))
}

impl Polled {
    fn of(fetched: Fetched, wss_url: String) -> Self {
        let (standing, token) = match fetched {
            Fetched::Standing(standing) => (standing, None),
            Fetched::Token { text, cluster } => {
                (Standing::Approved(cluster), Some(text.expose().to_owned()))
            }
        };
        let (status, reason, cluster) = match standing {
            Standing::Pending => ("pending", None, None),
            Standing::Approved(cluster) => ("approved", None, Some(cluster)),
            Standing::Consumed(cluster) => ("consumed", None, Some(cluster)),
            Standing::Expired => ("expired", None, None),
            // The four words are the contract's.
            Standing::Denied => ("expired", Some("denied"), None),
        };
        Self {
            status,
            reason,
            cluster_id: cluster.map(|id| id.to_string()),
            token,
            wss_url,
        }
    }
}

/// Requests of agents that wait for a decision or for their token, oldest first.
#[utoipa::path(get, operation_id = "list_connect_requests", path = "/connect/requests", params(PageParams),
    tag = "connect requests",
    responses((status = OK, body = Page<View>), (status = "default", body = ProblemBody)))]
pub(super) async fn list(
    State(context): State<Shared>,
    Params(page): Params<PageParams>,
) -> Result<Answer<Page<View>>, Problem> {
    let requests = context.hub.connect_requests().await?.into_iter();
    Ok(Answer(page.page(requests.map(|request| {
        // In the order of the store: a time has as many digits for centuries.
        let key = format!("{} {}", request.created_unix_ms, request.id);
        (key, View::from(request))
    }))?))
}

/// Lets the agent fetch a token of a cluster.
#[utoipa::path(post, operation_id = "approve_connect_request", path = "/connect/requests/{request_id}/approve",
    tag = "connect requests", params(("request_id" = String, Path)), request_body = Approval,
    responses((status = OK, body = View), (status = "default", body = ProblemBody)))]
pub(super) async fn approve(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Path(request_id): Path<String>,
    Json(body): Json<Approval>,
) -> Result<Answer<View>, Problem> {
    decide(&context, &cause, &request_id, body)
        .await
        .map(Answer)
}

async fn decide(
    context: &Shared,
    cause: &Cause,
    request_id: &str,
    body: Approval,
) -> Result<View, Problem> {
    let cluster = cluster_id(&body.cluster)?;
    let new = match (body.create, body.spec) {
        (true, patch) => {
            let mut spec = Spec::default();
            patch.unwrap_or_default().apply(&mut spec);
            Some(spec)
        }
        (false, None) => None,
        (false, Some(_)) => return Err(Problem::field("spec", "goes with create: true")),
    };
    let decision = Decision::Approve(cluster.clone());
    let hub = &context.hub;
    let decided = hub.decide_connect_request(cause, request_id, decision, new);
    let decided = decided.await;
    decided
        .map(View::from)
        .map_err(|why| Problem::from(why).about(&cluster))
}

/// Refuses the agent; an approval that it did not use yet is taken back.
#[utoipa::path(post, operation_id = "deny_connect_request", path = "/connect/requests/{request_id}/deny",
    tag = "connect requests", params(("request_id" = String, Path)),
    responses((status = OK, body = View), (status = "default", body = ProblemBody)))]
pub(super) async fn deny(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Path(request_id): Path<String>,
) -> Result<Answer<View>, Problem> {
    let decided = context
        .hub
        .decide_connect_request(&cause, &request_id, Decision::Deny, None);
    Ok(Answer(decided.await?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_asked_about_at_its_pace() {
        let connects = Connects::default();
        assert!(connects.keeps_pace("a", 10_000));
        assert!(!connects.keeps_pace("a", 10_000 + GAP_MS_MIN - 1));
        assert!(connects.keeps_pace("b", 10_000));
        assert!(connects.keeps_pace("a", 10_000 + GAP_MS_MIN));
        for n in 0..2 * GAPS_MAX {
            connects.keeps_pace(&n.to_string(), 20_000);
        }
        assert!(connects.last.lock().len() <= GAPS_MAX);
        assert!(connects.keeps_pace("c", 20_000 + GAP_MS_MIN));
    }

    #[test]
    fn agents_find_the_hub_where_people_do() {
        assert_eq!(wss_url("https://hub.test"), "wss://hub.test/agent");
        assert_eq!(wss_url("http://h:8443"), "ws://h:8443/agent");
    }
}
