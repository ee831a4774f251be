//! What clients say to the internal listener, and people to theirs, and what becomes of it.

mod arrival;
mod audited;
mod body;
mod caller;
mod exchange;
mod forward;
mod head;
mod person;
mod refuse;
mod relayed;
mod response;
mod tracked;
mod upgrade;
mod upload;

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, SET_COOKIE, TRAILER, UPGRADE,
};
use http::request::Parts;
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use culvert_net::carrier::Stream;
use culvert_net::crypto::random_bytes;
use culvert_proto::answer::BodyKind;
use culvert_proto::close::CloseReason;
use culvert_proto::head::RequestRules;
use culvert_proto::hello::CarrierKind;
use culvert_proto::id::RequestId;
use culvert_proto::open::{StreamHeader, StreamKind};
use culvert_proto::route::parse_cluster_path;

use crate::conn::InFlight;
use crate::metrics::UNROUTED;
use crate::plane::{Plane, unix_ms};
use crate::rights::{Begun, Running};
use crate::sessions::StreamSlot;
use crate::table::Cluster;

pub use body::{Body, BodyCut};
pub use caller::{Caller, Person, Who};
pub use forward::{FORWARD_PATH, forward};
pub use head::judge;
pub use refuse::Refusal;

use arrival::{Arrival, Door};
use exchange::Exchange;
use head::{Asked, Route, Towards};
use person::{Admitted, only_reads};
use relayed::Relayed;
use response::ResponseReader;
use tracked::Tracked;
use upload::Framing;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers a request to `/tunnel/{cluster}/...`.
pub async fn tunnel(
    plane: &Arc<Plane>,
    peer: SocketAddr,
    in_flight: InFlight,
    request: Request<Incoming>,
) -> Response<Body> {
    serve(plane, Door::Machines, peer, in_flight, request).await
}

/// Answers a request to `/c/{cluster}/...`.
pub async fn person(
    plane: &Arc<Plane>,
    peer: SocketAddr,
    in_flight: InFlight,
    request: Request<Incoming>,
) -> Response<Body> {
    serve(plane, Door::People, peer, in_flight, request).await
}

async fn serve(
    plane: &Arc<Plane>,
    door: Door,
    peer: SocketAddr,
    in_flight: InFlight,
    request: Request<Incoming>,
) -> Response<Body> {
    let id = request_id(request.headers());
    let (parts, body) = request.into_parts();
    let closing = parts.version < Version::HTTP_2 && plane.is_draining();
    let arrival = Arrival {
        plane,
        door,
        peer,
        id: &id,
    };
    let mut answer = match Ingress::admit(&arrival, in_flight, &parts, &body) {
        Ok(ingress) => ingress.relay(parts, body).await,
        Err((mut refusal, kind)) => {
            // What the client sent after a refused upgrade is not a request.
            refusal.close |= parts.headers.contains_key(UPGRADE);
            match door {
                Door::Machines => refusal.answer(kind),
                Door::People => person::refuse(plane, peer, &parts, &refusal, kind).await,
            }
        }
    };
    if closing && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        answer
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer.headers_mut().insert(X_REQUEST_ID, id.text);
    answer
}

/// The request's id, as bytes for the stream and text for the heads.
struct Id {
    id: RequestId,
    text: HeaderValue,
}

/// The client's id if it is a UUID, else a new one.
fn request_id(headers: &HeaderMap) -> Id {
    if let Some(text) = headers.get(X_REQUEST_ID)
        && let Ok(id) = text.to_str().unwrap_or_default().parse()
    {
        let text = text.clone();
        return Id { id, text };
    }
    let id = RequestId::v7(unix_ms(), random_bytes());
    let text = HeaderValue::try_from(id.to_string());
    Id {
        id,
        text: text.unwrap_or(HeaderValue::from_static("")),
    }
}

/// A request that may be relayed, with everything it holds.
struct Ingress<'a> {
    plane: &'a Arc<Plane>,
    peer: SocketAddr,
    /// Who asks; known here, before anything is forwarded.
    caller: Caller,
    renewed: Option<HeaderValue>,
    cluster: Arc<Cluster>,
    id: &'a Id,
    asked: Asked,
    rest: String,
    header: StreamHeader,
    tracked: Tracked,
}

/// A stream whose answer has begun.
struct Opened {
    head: response::Head,
    exchange: Exchange,
    slot: StreamSlot,
    client: Option<OnUpgrade>,
    running: Option<Running>,
}

impl<'a> Ingress<'a> {
    fn admit(
        arrival: &Arrival<'a>,
        in_flight: InFlight,
        parts: &Parts,
        body: &Incoming,
    ) -> Result<Self, (Refusal, BodyKind)> {
        let (plane, id) = (arrival.plane, arrival.id);
        let table = plane.table.load();
        let raw = parts
            .uri
            .path_and_query()
            .map_or("", |target| target.as_str());
        let routed = parse_cluster_path(arrival.door.prefix(), raw);
        let named = routed.as_ref().ok();
        let (metrics, kind) = match named.and_then(|route| table.get(route.cluster)) {
            Some(cluster) => (cluster.metrics.clone(), cluster.body_kind()),
            None => (plane.metrics.cluster(UNROUTED), BodyKind::Problem),
        };
        let mut tracked = Tracked::new(parts.method.clone(), metrics, in_flight);
        match arrival.judge(&table, routed, (parts, body), &mut tracked) {
            Ok(judged) => {
                let Admitted {
                    caller,
                    renewed,
                    watching,
                } = judged.admitted;
                tracked.watch(watching);
                let mut header = stream_header(&judged.cluster, id, parts, arrival.peer);
                if let Some(person) = caller.person() {
                    person.log(id.id);
                    header.principal = Some(person.who.subject().into());
                }
                Ok(Self {
                    header,
                    plane,
                    peer: arrival.peer,
                    caller,
                    renewed,
                    cluster: judged.cluster,
                    id,
                    asked: judged.asked,
                    rest: judged.rest,
                    tracked,
                })
            }
            Err(refusal) => {
                tracked.refused(refusal.reason);
                tracing::debug!(
                    reason = %refusal.reason, detail = refusal.detail, request_id = %id.id,
                    "request refused"
                );
                if arrival.door == Door::Machines {
                    audited::turned_away(arrival, &table, (parts, raw), refusal.reason);
                }
                Err((refusal, kind))
            }
        }
    }

    /// Opens a stream, sends the head and turns the answer around.
    async fn relay(mut self, mut parts: Parts, body: Incoming) -> Response<Body> {
        // Before a byte of it leaves this process.
        if let Err(refusal) = self.audited(&parts).await {
            return self.refuse(&refusal);
        }
        let mut opened = match self.open(&mut parts, body).await {
            Ok(opened) => opened,
            Err(refusal) => return self.refuse(&refusal),
        };
        self.tracked.run(opened.running.take());
        self.tracked.conn().relaying();
        match opened.client {
            Some(client) if opened.head.status == StatusCode::SWITCHING_PROTOCOLS => {
                self.upgraded(opened.head, opened.exchange, opened.slot, client)
            }
            _ => self.answered(&parts, opened),
        }
    }

    async fn open(&self, parts: &mut Parts, body: Incoming) -> Result<Opened, Refusal> {
        let route = Route {
            target: &self.rest,
            host: self.cluster.host(),
            request_id: &self.id.text,
            rules: self.rules(),
        };
        let mut head = head::build(parts, &self.asked, &route)?;
        let id = &self.cluster.state.id;
        let metrics = &self.cluster.metrics;
        let (stream, mut slot) = self.plane.sessions.open(id, metrics, &self.header)?;
        let running = self.running(parts, &stream, &slot);
        let running = running.map_err(|reason| slot.failed(reason))?;
        if let Some(person) = self.caller.person() {
            let towards = Towards {
                kind: self.cluster.kind(),
                is_radar: slot.session().facts.kind == CarrierKind::Radar,
                cluster: id.as_str(),
                hub_id: &self.plane.table.load().hub_id,
            };
            head::write_identity(&mut head, person, &towards)?;
        }
        head::end(&mut head);
        let upgrade = self.asked.upgrade.is_some();
        let reader = ResponseReader::new(parts.method == http::Method::HEAD, upgrade);
        let begun = Exchange::begin(stream, head.freeze(), reader).await;
        let mut exchange = begun.map_err(|reason| slot.failed(reason))?;
        if !matches!(self.asked.framing, Framing::None | Framing::Length(0)) {
            let (framing, kind) = (self.asked.framing, self.cluster.kind());
            let bytes_max = self.plane.config.body_bytes_max;
            let meter = self.tracked.meter();
            exchange.start_upload(|leg| upload::pump(leg, body, framing, kind, bytes_max, meter));
        }
        let client = upgrade
            .then(|| parts.extensions.remove::<OnUpgrade>())
            .flatten();
        let head = match self.plane.config.response_head_timeout.filter(|_| !upgrade) {
            Some(limit) => tokio::time::timeout(limit, exchange.head())
                .await
                .unwrap_or(Err(CloseReason::AnswerTimeout)),
            None => exchange.head().await,
        };
        Ok(Opened {
            head: head.map_err(|reason| slot.failed(reason))?,
            exchange,
            slot,
            client,
            running,
        })
    }

    /// What a person begins ends with their right to it.
    fn running(
        &self,
        parts: &Parts,
        stream: &Stream,
        slot: &StreamSlot,
    ) -> Result<Option<Running>, CloseReason> {
        let Caller::Person(person) = &self.caller else {
            return Ok(None);
        };
        let begun = Begun {
            cluster: self.cluster.clone(),
            person: person.clone(),
            reads: only_reads(parts, &self.asked),
            session: slot.shared(),
            stream: stream.id(),
        };
        self.plane.rights.begin(self.plane, begun).map(Some)
    }

    /// Which fields of the client pass: of a person none that says who somebody is.
    fn rules(&self) -> RequestRules {
        let mut rules = self.cluster.rules();
        rules.allow_impersonation &= self.caller.person().is_none();
        rules
    }

    /// Keeps of an answer's head what may travel to the client.
    fn keep_fields(&self, headers: &mut HeaderMap, slot: &StreamSlot) {
        let is_page = self.caller.person().is_some();
        head::keep_response_fields(headers, slot.session().facts.kind.is_culvert(), is_page);
        if is_page {
            head::guard_pages(headers);
        }
        if let Some(cookie) = &self.renewed {
            headers.append(SET_COOKIE, cookie.clone());
        }
    }

    fn refuse(mut self, refusal: &Refusal) -> Response<Body> {
        self.tracked.refused(refusal.reason);
        tracing::debug!(
            reason = %refusal.reason, detail = refusal.detail, request_id = %self.id.id,
            cluster = %self.cluster.state.id, "request failed"
        );
        let mut refusal = refusal.clone();
        // What the client sent after a refused upgrade is not a request.
        refusal.close |= self.asked.upgrade.is_some();
        refusal.answer(self.cluster.body_kind())
    }

    /// An ordinary answer: its head rebuilt, its body streamed.
    fn answered(self, parts: &Parts, opened: Opened) -> Response<Body> {
        let Opened {
            head,
            exchange,
            slot,
            ..
        } = opened;
        let response::Head {
            status,
            mut headers,
            length,
        } = head;
        let trailers = self.asked.trailers || parts.version == Version::HTTP_2;
        let announced = head::trailer_names(&headers);
        self.keep_fields(&mut headers, &slot);
        if let Some(names) = announced.filter(|_| trailers) {
            headers.insert(TRAILER, names);
        }
        if self.asked.upgrade.is_some() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let body_length = if exchange.is_done() { Some(0) } else { length };
        let bulk = self.bulk(parts, body_length).map(Box::new);
        let mut tracked = self.tracked;
        tracked.answered(status);
        if let Some(length) = length
            && status != StatusCode::NOT_MODIFIED
            && status != StatusCode::NO_CONTENT
        {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        if length.is_none() && parts.version < Version::HTTP_11 {
            // Only the close ends this body: until it is whole, a close is RST.
            tracked.conn().arm();
        }
        let body = Relayed::new(exchange, body_length, trailers, tracked, slot).recorded(bulk);
        let mut response = Response::new(Body::Relayed(Box::new(body)));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// The service switched protocols: so do we, and join the two.
    fn upgraded(
        self,
        answer: response::Head,
        exchange: Exchange,
        mut slot: StreamSlot,
        client: OnUpgrade,
    ) -> Response<Body> {
        let mut headers = answer.headers;
        let switched = headers.get(UPGRADE).cloned();
        let asked = self.asked.upgrade.as_ref();
        let same = switched
            .as_ref()
            .zip(asked)
            .is_some_and(|(switched, asked)| {
                switched
                    .as_bytes()
                    .trim_ascii()
                    .eq_ignore_ascii_case(asked.as_bytes().trim_ascii())
            });
        let (Some(upgrade), true, Some((stream, early))) = (switched, same, exchange.into_raw())
        else {
            let mut refusal = slot.failed(CloseReason::UpstreamProtocol);
            refusal.detail = "It switched to a protocol that was not asked for.".to_owned();
            return self.refuse(&refusal);
        };
        self.keep_fields(&mut headers, &slot);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, upgrade);
        let mut tracked = self.tracked;
        tracked.answered(StatusCode::SWITCHING_PROTOCOLS);
        tracked.opened();
        let join = upgrade::Join {
            stream,
            early,
            tracked,
            slot,
        };
        tokio::spawn(join.run(client));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = headers;
        response
    }
}

fn stream_header(cluster: &Cluster, id: &Id, parts: &Parts, peer: SocketAddr) -> StreamHeader {
    let mut header = StreamHeader::new(StreamKind::Http);
    header.target = cluster.state.target.addr.clone();
    header.request_id = Some(id.id);
    let traceparent = parts
        .headers
        .get("traceparent")
        .and_then(|value| value.to_str().ok());
    header.traceparent = traceparent
        .filter(|text| text.len() == culvert_proto::open::TRACEPARENT_BYTES)
        .map(Into::into);
    header.client_addr = Some(peer.to_string().into());
    header
}
