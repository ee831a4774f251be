//! `/fleet`: every cluster at a glance, as the person who asks may see it (P-06, R-32).

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Extension, OriginalUri, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::Shared;
use super::access::{self, Principal};
use super::problem::ProblemBody;
use super::times::rfc3339;
use crate::cluster::{Cluster, TargetKind};
use crate::fanout::{Answer, Credential, Health, Missing, Question, Verdict};
use crate::fleet::Fleet;
use crate::hub::Hub;

/// The label whose value is a cluster's environment.
const ENVIRONMENT: &str = "environment";
/// Clusters without that label.
const NO_ENVIRONMENT: &str = "none";

/// The clusters at a glance.
#[derive(Serialize, ToSchema)]
#[schema(as = Fleet)]
pub(super) struct FleetView {
    rollup: Rollup,
    clusters: Vec<MemberView>,
}

/// All clusters counted.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rollup {
    total_clusters: usize,
    /// healthy, degraded, unreachable, unknown and denied.
    by_status: BTreeMap<&'static str, usize>,
    /// By the label `environment`; `none` without it.
    by_environment: BTreeMap<String, usize>,
    generated_at: String,
}

/// A cluster at a glance.
#[derive(Serialize, ToSchema)]
#[schema(as = FleetMember)]
pub(super) struct MemberView {
    name: String,
    /// healthy, degraded, unreachable, unknown or denied.
    status: &'static str,
    /// RFC 3339; null when no agent was ever seen.
    #[serde(rename = "lastContact")]
    last_contact: Option<String>,
    /// Agents connected now.
    agents: usize,
    /// Of the nearest agent; null when not known.
    rtt_ms: Option<u32>,
    /// What the cluster says of itself, else of its agent; null when neither is known.
    version: Option<String>,
    /// Why it is not healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What the clusters answered.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct FleetAnswers {
    /// Path and query that each was asked.
    path: String,
    rollup: Rollup,
    clusters: Vec<AnswerView>,
}

/// What a cluster answered.
#[derive(Serialize, ToSchema)]
#[schema(as = FleetAnswer)]
#[serde(rename_all = "camelCase")]
pub(super) struct AnswerView {
    name: String,
    /// healthy, degraded, unreachable, unknown or denied.
    status: &'static str,
    /// Null without an answer.
    http_status: Option<u16>,
    /// JSON of at most 64 KiB; null without.
    body: Option<Value>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A cluster, and what is known of it without asking.
struct Member {
    cluster: Arc<Cluster>,
    agents: usize,
    rtt_ms: Option<u32>,
    agent_version: Option<String>,
    last_contact_unix_ms: Option<u64>,
}

/// Every cluster at a glance. Those that are connected are asked at once, as the caller,
/// 2 s each and 8 s in all; one that does not answer fails for itself. Kept for 10 s.
#[utoipa::path(get, operation_id = "show_fleet", path = "/fleet", tag = "fleet",
    responses((status = OK, body = FleetView), (status = "default", body = ProblemBody)))]
pub(super) async fn show(
    State(context): State<Shared>,
    Extension(principal): Extension<Arc<Principal>>,
    headers: HeaderMap,
) -> Response {
    let asked = Asked::by(&principal, &headers);
    let page = async {
        let members = members(&context.hub);
        let question = |cluster: &Cluster| match cluster.spec.target_kind {
            TargetKind::Kube => (Method::GET, "/version"),
            TargetKind::Http => (Method::HEAD, "/"),
        };
        let verdicts = asked.ask(&context, &members, question).await;
        let rollup = rollup(&context.hub, &members, &verdicts);
        let clusters = members.iter().zip(verdicts);
        let clusters = clusters.map(|(member, (verdict, _))| member.view(verdict));
        render(&FleetView {
            rollup,
            clusters: clusters.collect(),
        })
    };
    let made = context.pages.get(asked.key(&principal, ""), page).await;
    json(made)
}

/// Asks every connected cluster for a path, as `/fleet` does; whatever JSON each answers.
#[utoipa::path(get, operation_id = "ask_fleet", path = "/fleet/{*path}", tag = "fleet",
    params(("path" = String, Path, description = "Path of the clusters, with slashes; a query goes along")),
    responses((status = OK, body = FleetAnswers), (status = "default", body = ProblemBody)))]
pub(super) async fn ask(
    State(context): State<Shared>,
    Extension(principal): Extension<Arc<Principal>>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Response {
    // As it was sent: a segment that was decoded could become two.
    let raw = uri.path_and_query().map_or("", |path| path.as_str());
    let path = raw.split_once("/fleet").map_or("/", |(_, path)| path);
    let asked = Asked::by(&principal, &headers);
    let page = async {
        let members = members(&context.hub);
        let answers = asked.ask(&context, &members, |_| (Method::GET, path)).await;
        let rollup = rollup(&context.hub, &members, &answers);
        let clusters = members.iter().zip(answers);
        let clusters = clusters.map(|(member, answer)| AnswerView::of(member, answer));
        render(&FleetAnswers {
            path: path.to_owned(),
            rollup,
            clusters: clusters.collect(),
        })
    };
    let made = context.pages.get(asked.key(&principal, path), page).await;
    json(made)
}

/// As whom clusters are asked.
struct Asked {
    credential: Option<Credential>,
}

impl Asked {
    fn by(principal: &Principal, headers: &HeaderMap) -> Self {
        // Only people are somebody in a cluster; a hub's own tokens stay with it.
        let cookie = headers.get(header::COOKIE);
        let cookie = cookie.filter(|_| principal.session.is_some());
        let cookie = cookie.map(|it| Credential(header::COOKIE, access::own_cookie(it)));
        let token = headers.get(header::AUTHORIZATION);
        let token = token.filter(|_| principal.personal.is_some());
        let token = token.map(|it| Credential(header::AUTHORIZATION, it.clone()));
        Self {
            credential: token.or(cookie),
        }
    }

    /// Who sees the same page: the person in the same groups, or the same token.
    fn key(&self, principal: &Principal, path: &str) -> String {
        let session = principal.session.as_ref();
        let mut groups: Vec<_> = session.map(|it| it.groups.clone()).unwrap_or_default();
        groups.sort();
        let subject = session.map_or("", |it| &*it.subject);
        let token = principal.personal.map(|digest| digest.0);
        // None holds a line feed unless it is quoted.
        format!("{subject:?}\n{groups:?}\n{token:?}\n{path}")
    }

    async fn ask<'a>(
        &self,
        context: &Shared,
        members: &[Member],
        question: impl Fn(&Cluster) -> (Method, &'a str),
    ) -> Vec<(Verdict, Option<Answer>)> {
        let (mut places, mut questions) = (Vec::new(), Vec::new());
        let mut verdicts: Vec<_> = members
            .iter()
            .enumerate()
            .map(|(at, member)| {
                let verdict = match (member.unasked(), &self.credential, &context.fanout) {
                    (Some(verdict), ..) => verdict,
                    (None, None, _) => Verdict::not_asked(
                        "not asked: clusters know people alone; sign in to see them",
                    ),
                    (None, _, None) => Verdict::not_asked(
                        "not asked: control does not know its data plane; set --data-plane-url",
                    ),
                    (None, Some(_), Some(_)) => {
                        let (method, path) = question(&member.cluster);
                        places.push(at);
                        questions.push(Question {
                            cluster: member.cluster.id.clone(),
                            method,
                            path: path.to_owned(),
                        });
                        Verdict::not_asked("")
                    }
                };
                (verdict, None)
            })
            .collect();
        let (Some(credential), Some(fanout)) = (&self.credential, &context.fanout) else {
            return verdicts;
        };
        let answers = fanout.ask(credential, questions).await;
        for (at, answer) in places.into_iter().zip(answers) {
            let kind = members[at].cluster.spec.target_kind;
            verdicts[at] = judged(kind, answer);
        }
        verdicts
    }
}

fn judged(kind: TargetKind, answer: Result<Answer, Missing>) -> (Verdict, Option<Answer>) {
    let verdict = Verdict::of(kind, answer.as_ref());
    (verdict, answer.ok())
}

fn members(hub: &Hub) -> Vec<Member> {
    let clusters = hub.clusters();
    hub.fleet(|fleet| clusters.values().map(|it| Member::of(fleet, it)).collect())
}

impl Member {
    fn of(fleet: &Fleet, cluster: &Arc<Cluster>) -> Self {
        let agents = || fleet.connected(&cluster.id);
        let rtt_ms = agents()
            .map(|agent| agent.fact.rtt_ms)
            .filter(|rtt| *rtt > 0);
        Self {
            agents: agents().count(),
            rtt_ms: rtt_ms.min(),
            agent_version: agents().map(|agent| agent.fact.version.to_string()).max(),
            last_contact_unix_ms: fleet
                .last_connected(&cluster.id)
                .or(cluster.last_connected_unix_ms),
            cluster: cluster.clone(),
        }
    }

    /// What is clear without asking.
    fn unasked(&self) -> Option<Verdict> {
        if !self.cluster.spec.enabled {
            return Some(Verdict::not_asked("the cluster is disabled"));
        }
        (self.agents == 0).then(|| Verdict::unreachable("no agent is connected"))
    }

    fn view(&self, verdict: Verdict) -> MemberView {
        MemberView {
            name: self.cluster.id.to_string(),
            status: verdict.health.as_str(),
            last_contact: self.last_contact_unix_ms.map(rfc3339),
            agents: self.agents,
            rtt_ms: self.rtt_ms,
            version: verdict.version.or_else(|| self.agent_version.clone()),
            error: verdict.error,
        }
    }
}

impl AnswerView {
    fn of(member: &Member, (verdict, answer): (Verdict, Option<Answer>)) -> Self {
        let body = answer
            .as_ref()
            .map(|answer| serde_json::from_slice(&answer.body));
        let (body, unread) = match body {
            Some(Ok(body)) => (Some(body), None),
            Some(Err(_)) => (None, Some("the answer is not JSON".to_owned())),
            None => (None, None),
        };
        Self {
            name: member.cluster.id.to_string(),
            status: verdict.health.as_str(),
            http_status: answer.map(|answer| answer.status.as_u16()),
            body,
            error: verdict.error.or(unread),
        }
    }
}

fn rollup<T>(hub: &Hub, members: &[Member], verdicts: &[(Verdict, T)]) -> Rollup {
    let mut by_status: BTreeMap<_, _> = Health::ALL.iter().map(|it| (it.as_str(), 0)).collect();
    for (verdict, _) in verdicts {
        *by_status.entry(verdict.health.as_str()).or_default() += 1;
    }
    let mut by_environment = BTreeMap::new();
    for member in members {
        let environment = member.cluster.spec.labels.get(ENVIRONMENT);
        let environment = environment.map_or(NO_ENVIRONMENT, |it| it.as_str());
        *by_environment.entry(environment.to_owned()).or_default() += 1;
    }
    Rollup {
        total_clusters: members.len(),
        by_status,
        by_environment,
        generated_at: rfc3339(hub.now_ms()),
    }
}

fn render(page: &impl Serialize) -> Bytes {
    serde_json::to_vec(page).unwrap_or_default().into()
}

fn json(page: Bytes) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], page).into_response()
}
