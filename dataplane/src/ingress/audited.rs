//! Audited requests: who asks what of whom, durable before it is forwarded.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::request::Parts;

use culvert_audit::{Actor, Attempted, BULK_BYTES, EventId, Resource, Verb, classify, verb};
use culvert_net::crypto::random_bytes;
use culvert_proto::close::CloseReason;
use culvert_proto::id::RequestId;
use culvert_proto::route::parse_cluster_path;
use culvert_proto::update::TargetKind;

use super::arrival::Arrival;
use super::caller::Who;
use super::{Caller, Id, Ingress, Refusal};
use crate::audit::{Event, Unkept};
use crate::plane::{Plane, unix_ms};
use crate::table::{Cluster, Table};

/// What is recorded of a request, whatever its verb turns out to be.
struct Subject {
    request_id: RequestId,
    actor: Actor,
    transport: &'static str,
    route: String,
    cluster: String,
    resource: Resource,
}

/// A request: its id, of which cluster, its head, and its path and query there.
pub type What<'a> = (&'a Id, &'a Cluster, &'a Parts, &'a str);

/// Somebody may not do this: that leaves its rows too, without making them wait.
pub fn denied(plane: &Plane, who: &Who, what: What<'_>, reason: CloseReason) {
    if let Some(verb) = verb_of(what) {
        let subject = Subject::of(who.for_audit(), what);
        plane.audit.denied(subject.attempted(verb), reason);
    }
}

/// What a request does, if it is of the verbs that are audited.
fn verb_of((_, cluster, parts, rest): What<'_>) -> Option<Verb> {
    verb(is_kube(cluster), parts.method.as_str(), rest)
}

fn is_kube(cluster: &Cluster) -> bool {
    cluster.state.target.kind == TargetKind::Kube
}

/// A machine was turned away before its attempt; of a cluster whose machines are audited that
/// leaves its rows too.
pub fn turned_away(
    arrival: &Arrival<'_>,
    table: &Table,
    (parts, target): (&Parts, &str),
    reason: CloseReason,
) {
    let Ok(route) = parse_cluster_path(arrival.door.prefix(), target) else {
        return;
    };
    let cluster = table.get(route.cluster);
    let Some(cluster) = cluster.filter(|it| it.state.audit_tunnel) else {
        return;
    };
    let what = (arrival.id, &**cluster, parts, route.rest);
    if let Some(verb) = verb_of(what) {
        let subject = Subject::of(("tunnel", machine(arrival.peer)), what);
        let attempted = subject.attempted(verb);
        arrival.plane.audit.turned_away(attempted, reason);
    }
}

/// Whoever reaches the internal listener, by its address.
fn machine(peer: SocketAddr) -> Actor {
    Actor {
        sub: format!("machine:{}", peer.ip().to_canonical()),
        ..Actor::default()
    }
}

impl Subject {
    fn of((transport, actor): (&'static str, Actor), (id, cluster, parts, rest): What<'_>) -> Self {
        Self {
            request_id: id.id,
            actor,
            transport,
            route: format!("{} {}", parts.method, parts.uri.path()),
            cluster: cluster.state.id.to_string(),
            resource: classify(is_kube(cluster), parts.method.as_str(), rest).resource,
        }
    }

    fn attempted(self, verb: Verb) -> Attempted {
        let time_unix_ms = unix_ms();
        Attempted {
            id: EventId::v7(time_unix_ms, random_bytes()),
            time_unix_ms,
            request_id: self.request_id,
            verb,
            actor: self.actor,
            transport: self.transport.to_owned(),
            route: self.route,
            cluster: self.cluster,
            resource: self.resource,
        }
    }
}

impl Ingress<'_> {
    /// Records the request, if it is of those that are audited.
    ///
    /// # Errors
    /// When no record can be kept, and the operator wants one.
    pub(super) async fn audited(&mut self, parts: &Parts) -> Result<(), Refusal> {
        let what = (self.id, &*self.cluster, parts, self.rest.as_str());
        let (Some(verb), true) = (verb_of(what), self.is_audited()) else {
            return Ok(());
        };
        let subject = Subject::of(self.who(), what);
        let attempted = self.plane.audit.attempt(subject.attempted(verb)).await;
        self.tracked.audited(attempted.map_err(|why| unkept(&why))?);
        Ok(())
    }

    /// Holds back an answer that may turn out to be a large download, unless the request has a
    /// record already.
    pub(super) fn bulk(&self, parts: &Parts, length: Option<u64>) -> Option<Bulk> {
        if !self.is_audited() || length.is_some_and(|length| length <= BULK_BYTES) {
            return None;
        }
        let what = (self.id, &*self.cluster, parts, self.rest.as_str());
        if verb_of(what).is_some() {
            return None;
        }
        let subject = Subject::of(self.who(), what);
        Some(Bulk::new(self.plane.clone(), subject))
    }

    fn is_audited(&self) -> bool {
        match self.caller {
            Caller::Machine => self.cluster.state.audit_tunnel,
            Caller::Person(_) => true,
        }
    }

    fn who(&self) -> (&'static str, Actor) {
        match &self.caller {
            Caller::Machine => ("tunnel", machine(self.peer)),
            Caller::Person(it) => it.who.for_audit(),
        }
    }
}

fn unkept(why: &Unkept) -> Refusal {
    Refusal::new(CloseReason::AuditUnavailable, format!("It says: {why}."))
}

type Recording = Pin<Box<dyn Future<Output = Result<Option<Event>, Unkept>> + Send>>;

/// Holds an answer back at [`BULK_BYTES`] until it is recorded.
pub struct Bulk {
    plane: Arc<Plane>,
    subject: Option<Subject>,
    recording: Option<Recording>,
    seen: u64,
}

impl Bulk {
    /// For an answer of what `subject` asks.
    fn new(plane: Arc<Plane>, subject: Subject) -> Self {
        Self {
            plane,
            subject: Some(subject),
            recording: None,
            seen: 0,
        }
    }

    /// More of the answer is there.
    pub fn count(&mut self, bytes: u64) {
        self.seen += bytes;
        if self.seen <= BULK_BYTES {
            return;
        }
        if let Some(subject) = self.subject.take() {
            let plane = self.plane.clone();
            let attempted = subject.attempted(Verb::BulkDownload);
            self.recording = Some(Box::pin(
                async move { plane.audit.attempt(attempted).await },
            ));
        }
    }

    /// Whether the answer may go on; the event, once, when it was recorded.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(Event, u64)>, CloseReason>> {
        let Some(recording) = &mut self.recording else {
            return Poll::Ready(Ok(None));
        };
        let recorded = ready!(recording.as_mut().poll(cx));
        self.recording = None;
        let before = self.seen;
        Poll::Ready(match recorded {
            Ok(event) => Ok(event.map(|event| (event, before))),
            Err(_) => Err(CloseReason::AuditUnavailable),
        })
    }
}
