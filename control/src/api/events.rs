//! `/events`: what changes at clusters, agents, licence and audit log, as server-sent events or
//! by asking again and again.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use axum::Json as Answer;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::response::sse;
use culvert_telemetry::lifecycle::{Phase, Shutdown};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use utoipa::{IntoParams, ToSchema};

use super::access::{self, Principal};
use super::agents::AgentView;
use super::body::Params;
use super::clusters::ClusterView;
use super::license::LicenseView;
use super::live::{self, LAST_EVENT_ID, LIFE_MAX, Sending, following};
use super::problem::ProblemBody;
use super::{Context, Problem, Shared};
use crate::audit::Cause;
use crate::events::{Difference, Event, Log, Place, Topic, Watched};
use crate::fleet::Agent;
use crate::hub::Follow;

/// The state is looked at this often; several changes between are one.
const LOOK: Duration = Duration::from_millis(250);
/// Whether a session still holds is looked at this often.
const CHECK: Duration = Duration::from_secs(5);
/// Events that are read at once.
const PAGE: usize = 200;
/// Longest that a poll waits.
const WAIT_S_MAX: u64 = 8;

/// What changed lately, and who is told when that grows.
pub struct Events {
    log: Mutex<Log>,
    grew: watch::Sender<()>,
    shutdown: Shutdown,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PollParams {
    /// `next` of the answer before; without it the answer is a snapshot.
    after: Option<String>,
    /// How long to wait for a first event, 0 to 8 s; 0 by default.
    wait: Option<u64>,
}

/// Events since the last poll, or all there is now.
#[derive(Serialize, ToSchema)]
pub(super) struct Polled {
    /// For `after` of the next poll.
    next: String,
    /// Everything as it is; null where `events` go on from the last poll.
    snapshot: Option<Everything>,
    events: Vec<EventView>,
}

/// Everything that events are about.
#[derive(Serialize, ToSchema)]
#[schema(as = Snapshot)]
pub(super) struct Everything {
    clusters: Vec<ClusterView>,
    /// Those that are connected, or whose data plane does not report.
    agents: Vec<AgentView>,
    license: LicenseView,
}

/// One event.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub(super) struct EventView {
    id: String,
    /// cluster, cluster_removed, agent, agent_removed, license or audit.
    event: &'static str,
    /// The thing as it is now, as its own route shows it; what names it when it is gone.
    #[schema(value_type = Object)]
    data: Box<RawValue>,
}

/// What changes, as server-sent events: first `snapshot`, then `cluster`, `cluster_removed`,
/// `agent`, `agent_removed`, `license` and `audit` (the log grew). At the end of the session
/// `auth_expired`, at the end of this process `server_shutdown`.
#[utoipa::path(get, operation_id = "stream_events", path = "/events", tag = "events",
    params(("Last-Event-ID" = Option<String>, Header, description = "Id of the last event seen: the stream goes on behind it, or begins anew with a snapshot where it cannot.")),
    responses((status = OK, content_type = "text/event-stream", body = String), (status = "default", body = ProblemBody)))]
pub(super) async fn stream(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Extension(principal): Extension<Arc<Principal>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let follow = following(&context.hub, &cause.actor.sub)?;
    // One that is not ours is as one that is not kept any more.
    let last = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok());
    let last = last.and_then(|id| id.parse().ok());
    let (events, response) = live::stream();
    tokio::spawn(async move {
        let feed = Feed {
            context,
            principal,
            events,
        };
        feed.run(last, follow).await;
    });
    Ok(response)
}

/// The same for who cannot keep a stream open: what changed since `after`.
#[utoipa::path(get, operation_id = "poll_events", path = "/events/poll", params(PollParams), tag = "events",
    responses((status = OK, body = Polled), (status = "default", body = ProblemBody)))]
pub(super) async fn poll(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Params(PollParams { after, wait }): Params<PollParams>,
) -> Result<Answer<Polled>, Problem> {
    let wait_s = wait.unwrap_or(0);
    if wait_s > WAIT_S_MAX {
        let why = format!("is {wait_s}; 0 to {WAIT_S_MAX} are allowed");
        return Err(Problem::field("wait", why));
    }
    let after = after.map(|text| text.parse::<Place>());
    let after = after.transpose();
    let after = after.map_err(|why| Problem::field("after", why.to_string()))?;
    let events = &context.events;
    let mut found = after.and_then(|place| events.after(place));
    if found.as_ref().is_some_and(Vec::is_empty) && wait_s > 0 {
        let _follow = following(&context.hub, &cause.actor.sub)?;
        let mut grew = events.grew.subscribe();
        found = after.and_then(|place| events.after(place));
        if found.as_ref().is_some_and(Vec::is_empty) {
            let _ = timeout(Duration::from_secs(wait_s), grew.changed()).await;
            found = after.and_then(|place| events.after(place));
        }
    }
    Ok(Answer(match (after, found) {
        (Some(after), Some(found)) => Polled {
            next: found.last().map_or(after, |(place, _)| *place).to_string(),
            snapshot: None,
            events: found.into_iter().filter_map(EventView::of).collect(),
        },
        _ => {
            let next = events.log.lock().end().to_string();
            Polled {
                next,
                snapshot: Some(Everything::now(&context)),
                events: Vec::new(),
            }
        }
    }))
}

impl Events {
    /// Of the process `boot`, until `shutdown` starts.
    #[must_use]
    pub fn new(boot: u64, shutdown: Shutdown) -> Self {
        Self {
            log: Mutex::new(Log::new(boot)),
            grew: watch::Sender::default(),
            shutdown,
        }
    }

    fn after(&self, place: Place) -> Option<Vec<(Place, Event)>> {
        self.log.lock().after(place, PAGE)
    }

    fn push(&self, new: Vec<Event>) {
        if new.is_empty() {
            return;
        }
        let mut log = self.log.lock();
        new.into_iter().for_each(|event| log.push(event));
        drop(log);
        self.grew.send_replace(());
    }
}

/// Turns what changes into events. Runs until dropped.
pub async fn watch(context: Arc<Context>) {
    let mut watched = Watched::default();
    // What stands there already is no news.
    watched.look(forms(&context));
    let mut marks = marks(&context);
    let mut newest = context.hub.audit_newest().await.ok();
    loop {
        sleep(LOOK).await;
        let now = self::marks(&context);
        if now != marks {
            marks = now;
            let differences = watched.look(forms(&context));
            let new = differences
                .into_iter()
                .filter_map(|it| event(&context, &it));
            context.events.push(new.collect());
        }
        // Only who watches makes the store work.
        if context.events.grew.receiver_count() > 0
            && let Ok(seq) = context.hub.audit_newest().await
            && newest.replace(seq) != Some(seq)
        {
            let data = format!("{{\"newest\":{seq}}}");
            context.events.push(vec![Event {
                topic: Topic::Audit,
                is_removed: false,
                data: data.into(),
            }]);
        }
    }
}

/// Equal as long as nothing changed.
fn marks(context: &Context) -> (u64, u64, u64) {
    let hub = &context.hub;
    let license = form(&LicenseView::now(context).standing());
    (
        hub.generation().0,
        hub.fleet(|fleet| fleet.changes),
        license,
    )
}

/// Everything there is, each with what identifies its form; what always moves is left out.
fn forms(context: &Context) -> Vec<((Topic, String), u64)> {
    let hub = &context.hub;
    let clusters = hub.clusters();
    let mut forms: Vec<_> = clusters
        .iter()
        .map(|(id, cluster)| {
            let view = ClusterView::of(hub, cluster);
            ((Topic::Cluster, id.to_string()), form(&view.standing()))
        })
        .collect();
    hub.fleet(|fleet| {
        forms.extend(fleet.present().map(|agent| {
            let fact = &agent.fact;
            let standing = (
                (
                    agent.presence,
                    &agent.dataplane,
                    fact.epoch.0,
                    &fact.token_id,
                ),
                (&fact.protocol, &fact.version, &fact.region, &fact.labels),
                (&fact.address, fact.draining, fact.connected_unix_ms),
            );
            ((Topic::Agent, name(agent)), form(&standing))
        }));
    });
    let license = form(&LicenseView::now(context).standing());
    forms.push(((Topic::License, String::new()), license));
    forms
}

fn form(thing: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    thing.hash(&mut hasher);
    hasher.finish()
}

fn name(agent: &Agent) -> String {
    format!("{} {}", agent.fact.cluster, agent.fact.instance)
}

/// The event of a difference; `None` where the thing went meanwhile: the next look says so.
fn event(context: &Context, difference: &Difference) -> Option<Event> {
    let hub = &context.hub;
    let (topic, data) = match difference {
        Difference::Changed(Topic::Cluster, id) => {
            let cluster = hub.cluster(&id.parse().ok()?).ok()?;
            let view = ClusterView::of(hub, &cluster);
            (Topic::Cluster, serde_json::to_string(&view))
        }
        Difference::Changed(Topic::Agent, wanted) => {
            let view = hub.fleet(|fleet| {
                let mut agents = fleet.present();
                agents
                    .find(|agent| name(agent) == *wanted)
                    .map(AgentView::from)
            });
            (Topic::Agent, serde_json::to_string(&view?))
        }
        Difference::Changed(topic, _) => {
            (*topic, serde_json::to_string(&LicenseView::now(context)))
        }
        Difference::Removed(topic, name) => {
            let mut words = name.split(' ');
            let named = match topic {
                Topic::Agent => {
                    BTreeMap::from([("cluster", words.next()), ("instance", words.next())])
                }
                _ => BTreeMap::from([("id", words.next())]),
            };
            (*topic, serde_json::to_string(&named))
        }
    };
    Some(Event {
        topic,
        is_removed: matches!(difference, Difference::Removed(..)),
        data: data.ok()?.into(),
    })
}

impl Everything {
    fn now(context: &Context) -> Self {
        let hub = &context.hub;
        let clusters = hub.clusters();
        Self {
            clusters: clusters
                .values()
                .map(|it| ClusterView::of(hub, it))
                .collect(),
            agents: hub.fleet(|fleet| fleet.present().map(AgentView::from).collect()),
            license: LicenseView::now(context),
        }
    }
}

impl EventView {
    fn of((place, event): (Place, Event)) -> Option<Self> {
        Some(Self {
            id: place.to_string(),
            event: event.topic.name(event.is_removed),
            data: RawValue::from_string(event.data.to_string()).ok()?,
        })
    }
}

/// One client's stream.
struct Feed {
    context: Shared,
    principal: Arc<Principal>,
    events: Sending,
}

impl Feed {
    /// Sends until the client is gone or too slow, its session ends, or this process does.
    async fn run(&self, last: Option<Place>, _follow: Follow) {
        let context = self.context.clone();
        let mut grew = context.events.grew.subscribe();
        let known = last.filter(|place| context.events.after(*place).is_some());
        let mut place = match known {
            Some(place) => place,
            None => {
                // What happens from here on comes as an event too.
                let place = context.events.log.lock().end();
                let everything = serde_json::to_string(&Everything::now(&context));
                let snapshot = everything.unwrap_or_default();
                if !self.send("snapshot", Some(place), &snapshot).await {
                    return;
                }
                place
            }
        };
        let end = Instant::now() + LIFE_MAX;
        let mut checked = Instant::now();
        while Instant::now() < end {
            // Who fell behind what is kept comes back, and starts anew.
            let Some(page) = context.events.after(place) else {
                return;
            };
            for (next, event) in page {
                let name = event.topic.name(event.is_removed);
                if !self.send(name, Some(next), &event.data).await {
                    return;
                }
                place = next;
            }
            if checked.elapsed() >= CHECK {
                checked = Instant::now();
                if access::has_ended(&context, &self.principal).await {
                    self.send("auth_expired", None, "{}").await;
                    return;
                }
            }
            tokio::select! {
                () = self.events.gone() => return,
                () = context.events.shutdown.reached(Phase::Draining) => {
                    self.send("server_shutdown", None, "{}").await;
                    return;
                }
                _ = grew.changed() => {}
                () = sleep(CHECK) => {}
            }
        }
    }

    async fn send(&self, name: &str, place: Option<Place>, data: &str) -> bool {
        let mut event = sse::Event::default().event(name).data(data);
        if let Some(place) = place {
            event = event.id(place.to_string());
        }
        self.events.send(event).await
    }
}
