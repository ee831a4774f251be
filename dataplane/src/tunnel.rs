//! An agent's way in: hello, credential, pacing, the 101, and its session's life.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};

use culvert_engine::legs::Leg;
use culvert_enrol::AgentCertificate;
use culvert_mux::Pressure;
use culvert_net::carrier::{CarrierConfig, carrier};
use culvert_net::crypto::{random_bytes, sha256};
use culvert_net::tls::ServerStream;
use culvert_net::transport::{Transport, unwrapped, websocket_accept};
use culvert_proto::answer::BodyKind;
use culvert_proto::close::CloseReason;
use culvert_proto::control::Grant;
use culvert_proto::hello::{
    AGENT_PATHS, Caps, CarrierKind, HelloAnswer, HelloRequest, refusal_status,
};
use culvert_proto::id::{ClusterId, SessionKey};
use culvert_proto::limits::{BEAT_DEAD_MS, BEAT_INTERVAL_MS, UPGRADE_TIMEOUT_MS};
use culvert_proto::registry::{Admission, Candidate, Policy, Refused};
use culvert_proto::session::{Config as SessionConfig, Role};
use culvert_proto::token::Digest;

use crate::conn::{ClientSocket, ConnState, InFlight};
use crate::ingress::{Body, Refusal};
use crate::observe::socket::Identity;
use crate::plane::{Plane, unix_ms};
use crate::session;
use crate::sessions::{Facts, Session};
use crate::table::Cluster;

/// What this hub can do over a session.
fn hub_caps(plane: &Plane, by_certificate: bool) -> Caps {
    let caps = Caps::CHANNEL
        .with(Caps::STATUS)
        .with(Caps::DRAIN)
        .with(Caps::SMALL_WINDOW);
    let caps = caps.with(match by_certificate {
        true => Caps::RENEW,
        false => Caps::ROTATE,
    });
    match plane.config.allow_plaintext_data_channels {
        true => caps.with(Caps::PLAIN_CHANNEL),
        false => caps,
    }
}

/// The agent path that `path` is, if it is one.
pub fn agent_path(path: &str) -> Option<&'static str> {
    AGENT_PATHS.into_iter().find(|known| *known == path)
}

/// Where a connection came from.
#[derive(Clone, Copy)]
pub struct From {
    /// The agent path.
    pub path: &'static str,
    /// The peer.
    pub peer: std::net::SocketAddr,
}

/// Answers a request on an agent path.
pub async fn enter(
    plane: &Arc<Plane>,
    from: From,
    in_flight: InFlight,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let mut kind = None;
    let refused = match admit(plane, from, in_flight.conn(), &request, &mut kind) {
        Ok(entrance) => match upgrade {
            Some(upgrade) => return entrance.answer(plane, upgrade, in_flight),
            None => Refusal::new(CloseReason::NoCommonVersion, ""),
        },
        Err(refused) => refused,
    };
    tracing::info!(
        peer = %from.peer, path = from.path, reason = %refused.reason,
        detail = refused.detail, "agent refused"
    );
    let stage = match refused.reason.http_status() {
        Some(401) => "auth",
        _ => "hello",
    };
    let labels = [stage, refused.reason.as_str()];
    plane
        .metrics
        .handshake_failures
        .with_label_values(&labels)
        .inc();
    if stage == "auth" {
        plane
            .metrics
            .auth_failures
            .with_label_values(&[from.path])
            .inc();
        let wait = plane.failures.failed(from.peer.ip(), Instant::now());
        tokio::time::sleep(wait).await;
    }
    refusal(&refused, kind)
}

/// What a refused agent is told: nothing about which credential exists, and on
/// Radar carriers only 401 or 500.
fn refusal(refused: &Refusal, kind: Option<CarrierKind>) -> Response<Body> {
    let told = refused.reason.for_stranger();
    let mut shown = refused.clone();
    shown.reason = told;
    if told == CloseReason::Unauthenticated {
        shown.detail.clear();
    }
    let mut answer = shown.answer(BodyKind::Problem);
    let status = StatusCode::from_u16(refusal_status(kind, told));
    *answer.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    if told == CloseReason::Unauthenticated {
        let bearer = HeaderValue::from_static("Bearer");
        headers.insert(http::header::WWW_AUTHENTICATE, bearer);
    }
    if answer.status() == StatusCode::UPGRADE_REQUIRED {
        let offer = HeaderValue::from_static("culvert/1, websocket");
        answer.headers_mut().insert(UPGRADE, offer);
    }
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// An agent that may come in.
struct Entrance {
    hello: HelloRequest,
    cluster: Arc<Cluster>,
    admission: Admission,
    facts: Facts,
}

fn admit(
    plane: &Arc<Plane>,
    from: From,
    conn: &ConnState,
    request: &Request<Incoming>,
    kind: &mut Option<CarrierKind>,
) -> Result<Entrance, Refusal> {
    let bad = |reason: CloseReason, why: String| Refusal::new(reason, why);
    if request.method() != Method::GET || request.version() != Version::HTTP_11 {
        let why = "Agents connect with GET over HTTP/1.1.".to_owned();
        return Err(bad(CloseReason::NoCommonVersion, why));
    }
    let fields = request.headers().iter();
    let fields = fields.map(|(name, value)| (name.as_str(), value.as_bytes()));
    let hello = HelloRequest::parse(request.uri().query(), fields)
        .map_err(|why| bad(why.close_reason(), why.to_string()))?;
    *kind = Some(hello.kind);
    if hello.kind == CarrierKind::Radar && from.path != "/agent" {
        let why = "Radar connectors connect to /agent.".to_owned();
        return Err(bad(CloseReason::NoCommonVersion, why));
    }
    if plane.is_draining() {
        let spread = Duration::from_secs(1 + u64::from(random_bytes::<1>()[0]) % 5);
        return Err(bad(CloseReason::Draining, String::new()).retry_after(spread));
    }
    let (cluster, token_id, certificate) = match conn.certificate() {
        None => {
            let (cluster, token_id) = authenticate(plane, &hello)?;
            (cluster, token_id, None)
        }
        Some(read) => {
            let certificate = read
                .as_ref()
                .map_err(|why| bad(CloseReason::NotEnrolled, why.to_string()))?;
            let cluster = identify(plane, &hello, certificate)?;
            (cluster, Arc::from(""), Some(certificate.clone()))
        }
    };
    if !cluster.state.enabled {
        return Err(bad(CloseReason::Disabled, String::new()));
    }
    pace(plane)?;
    let admission = reserve(plane, &hello, &cluster.state.id)?;
    let facts = Facts {
        version: hello.hello.version.clone(),
        kind: hello.kind,
        peer: from.peer,
        showed_certificate: conn.is_certified(),
        certificate,
        token_id,
        began: Instant::now(),
    };
    Ok(Entrance {
        hello,
        cluster,
        admission,
        facts,
    })
}

/// One digest and one search, whatever was presented (D-14).
fn authenticate(plane: &Plane, hello: &HelloRequest) -> Result<(Arc<Cluster>, Arc<str>), Refusal> {
    let presented = hello.token.as_ref().map_or("", |token| token.expose());
    let digest = Digest(sha256(presented.as_bytes()));
    let table = plane.table.load();
    let found = table.tokens.find(&digest, unix_ms());
    if table.source == crate::table::Source::None {
        return Err(Refusal::new(CloseReason::NoTable, ""));
    }
    let entry = found.map_err(|why| Refusal::new(why.close_reason(), why.to_string()))?;
    hello
        .check_cluster(&entry.cluster)
        .map_err(|why| Refusal::new(why.close_reason(), why.to_string()))?;
    let cluster = table.get(entry.cluster.as_str()).cloned();
    let cluster = cluster.ok_or_else(|| Refusal::new(CloseReason::Unauthenticated, ""))?;
    Ok((cluster, entry.token_id.clone()))
}

/// The cluster that a certificate names, if it is registered and the certificate was made for it.
fn identify(
    plane: &Plane,
    hello: &HelloRequest,
    certificate: &AgentCertificate,
) -> Result<Arc<Cluster>, Refusal> {
    let refused = |why: String| Refusal::new(CloseReason::NotEnrolled, why);
    let table = plane.table.load();
    if table.source == crate::table::Source::None {
        return Err(Refusal::new(CloseReason::NoTable, ""));
    }
    let id = &certificate.cluster;
    let cluster = table.get(id.as_str()).cloned();
    let cluster = cluster.ok_or_else(|| {
        refused(format!(
            "The certificate is for {id}, which is no cluster here."
        ))
    })?;
    let validity = certificate.validity;
    if validity.issued_unix_s < cluster.state.certificates_from_unix_s {
        let why = "The certificate is older than the cluster, or than its last revocation.";
        return Err(refused(why.to_owned()));
    }
    // A resumed session skips the handshake's look at the clock.
    if validity.is_over(unix_ms() / 1000) {
        return Err(refused("The certificate is expired.".to_owned()));
    }
    hello
        .check_cluster(id)
        .map_err(|why| Refusal::new(why.close_reason(), why.to_string()))?;
    Ok(cluster)
}

fn pace(plane: &Plane) -> Result<(), Refusal> {
    let random = u64::from_ne_bytes(random_bytes());
    if plane.budget.pressure() >= Pressure::PaceSessions {
        let wait = Duration::from_secs(5 + random % 25);
        return Err(Refusal::new(CloseReason::Paced, "").retry_after(wait));
    }
    plane
        .admission
        .admit(Instant::now(), random)
        .map_err(|wait| Refusal::new(CloseReason::Paced, "").retry_after(wait))
}

/// The floor is read under the registry's lock, so that no revocation slips between.
fn reserve(plane: &Plane, hello: &HelloRequest, id: &ClusterId) -> Result<Admission, Refusal> {
    let candidate = || {
        let table = plane.table.load();
        let floor = table.floor(id.as_str())?;
        let policy = table
            .get(id.as_str())
            .map_or(Policy::default(), |c| c.state.policy);
        Some(Candidate {
            cluster: id.clone(),
            instance: hello.hello.instance,
            policy,
            floor,
        })
    };
    match plane.sessions.admit(candidate) {
        Some(admitted) => admitted.map_err(|why| refused_session(&why)),
        None => Err(Refusal::new(CloseReason::Disabled, "")),
    }
}

fn refused_session(why: &Refused) -> Refusal {
    let refusal = Refusal::new(why.close_reason(), why.to_string());
    match why {
        Refused::HoldDown { remaining_ms } => {
            refusal.retry_after(Duration::from_millis(*remaining_ms))
        }
        _ => refusal,
    }
}

impl Entrance {
    /// Sends the 101 and lets the session begin behind it.
    fn answer(self, plane: &Arc<Plane>, upgrade: OnUpgrade, in_flight: InFlight) -> Response<Body> {
        let epoch = self.admission.key().epoch;
        let caps = self.hello.hello.caps & hub_caps(plane, self.facts.certificate.is_some());
        let answer = HelloAnswer::new(self.hello.kind, epoch, caps);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        for (name, value) in answer.headers() {
            put(headers, name, &value);
        }
        if self.hello.kind != CarrierKind::Native
            && let Some(key) = &self.hello.websocket_key
        {
            put(headers, "sec-websocket-accept", &websocket_accept(key));
        }
        // Before the 101 is written.
        in_flight.conn().identify(Identity {
            seen: self.cluster.metrics.seen.clone(),
            leg: Leg::Carrier,
            conn: None,
        });
        let plane = plane.clone();
        tokio::spawn(async move { self.run(&plane, upgrade, in_flight, caps).await });
        response
    }

    async fn run(self, plane: &Arc<Plane>, upgrade: OnUpgrade, in_flight: InFlight, caps: Caps) {
        let wait = Duration::from_millis(UPGRADE_TIMEOUT_MS);
        let upgraded = match tokio::time::timeout(wait, upgrade).await {
            Ok(Ok(upgraded)) => upgraded,
            Ok(Err(why)) => return tracing::debug!(%why, "an agent left before its session"),
            Err(_) => return tracing::debug!("an agent's upgrade did not end in time"),
        };
        let Some(transport) = transport(upgraded, self.hello.kind) else {
            return tracing::error!("an agent came in over a socket of another kind");
        };
        let key = self.admission.key().clone();
        let granted = self.cluster.targets(&[]);
        let mut config = self.carrier_config(&key, caps, granted.clone());
        config.hangup = in_flight.conn().hangup();
        let (carrier, driver) = carrier(transport, config, plane.budget.clone());
        let streams_max = self.cluster.streams_max;
        let metrics = &plane.metrics;
        let session = Session::new(key, self.facts, carrier, caps, streams_max, metrics);
        *session.granted.lock() = granted;
        match plane.sessions.attach(self.admission, &session) {
            Ok(evicted) => {
                for old in evicted {
                    tokio::spawn(session::retire(old, plane.config.drain_grace));
                }
                session::live(plane, &session, driver).await;
            }
            Err(why) => {
                tracing::info!(session = %session.key, %why, "agent refused at the last moment");
                session.carrier.close(why.close_reason());
                driver.await;
            }
        }
    }

    fn carrier_config(
        &self,
        key: &SessionKey,
        caps: Caps,
        targets: Vec<Arc<str>>,
    ) -> CarrierConfig {
        let mut config = match self.hello.kind {
            CarrierKind::Radar => CarrierConfig::radar(culvert_net::carrier::End::Hub),
            CarrierKind::Native | CarrierKind::WebSocket => {
                let grant = Grant {
                    epoch: key.epoch,
                    targets,
                };
                let session = SessionConfig {
                    beat_ms: BEAT_INTERVAL_MS,
                    dead_ms: BEAT_DEAD_MS,
                    hello_timeout_ms: UPGRADE_TIMEOUT_MS,
                    caps,
                    ..SessionConfig::default()
                };
                CarrierConfig::native(Role::Hub(grant), session)
            }
        };
        config.mux.streams_max = self.cluster.streams_max;
        config
    }
}

/// The socket itself: hyper's layer comes off, TLS stays.
fn transport(upgraded: Upgraded, kind: CarrierKind) -> Option<Box<dyn Transport>> {
    unwrapped::<ClientSocket>(upgraded, kind)
        .or_else(|upgraded| unwrapped::<ServerStream<ClientSocket>>(upgraded, kind))
        .ok()
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
