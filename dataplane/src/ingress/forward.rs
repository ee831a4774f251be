//! A person's port forward: an upgrade to raw bytes, by a personal token.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, CONNECTION, HeaderMap, HeaderValue, UPGRADE, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use culvert_net::crypto::sha256;
use culvert_proto::answer::BodyKind;
use culvert_proto::close::CloseReason;
use culvert_proto::id::ClusterId;
use culvert_proto::limits::UPGRADE_TIMEOUT_MS;
use culvert_proto::token::{Digest, TokenIndex};
use culvert_proto::update::{ClusterState, PersonalToken, ServiceName};

use super::upgrade::raw;
use super::{Body, Refusal, X_REQUEST_ID, request_id};
use crate::conn::InFlight;
use crate::flow::{Ask, Begun, Origin};
use crate::plane::{Plane, unix_ms};
use crate::routes::Way;

/// What `culvert-agent forward` asks for: `/forward/{cluster}/{service}`.
pub const FORWARD_PATH: &str = "/forward/";
/// The protocol it upgrades to.
const PROTOCOL: &str = "culvert-tcp/1";

/// Answers a request to `/forward/...`.
pub async fn forward(
    plane: &Arc<Plane>,
    peer: SocketAddr,
    in_flight: InFlight,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let id = request_id(request.headers());
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let begun = match admit(plane, &request) {
        Ok((way, origin)) => {
            let ask = Ask::new(plane, origin, way, peer, bytes::Bytes::new());
            ask.called(id.id).begin().await
        }
        Err(refusal) => Err(refusal),
    };
    let mut answer = match (begun, upgrade) {
        (Ok(begun), Some(upgrade)) => {
            tokio::spawn(join(begun, upgrade, in_flight));
            switched()
        }
        (Ok(_), None) => refused(plane, peer, Refusal::new(CloseReason::NoCommonVersion, "")).await,
        (Err(refusal), _) => refused(plane, peer, refusal).await,
    };
    answer.headers_mut().insert(X_REQUEST_ID, id.text);
    answer
}

fn switched() -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    answer
}

/// As with agents: who fails too often waits, and is told nothing about which
/// credential exists.
async fn refused(plane: &Plane, peer: SocketAddr, mut refusal: Refusal) -> Response<Body> {
    let shown = refusal.reason.for_stranger();
    let is_credential = shown.http_status() == Some(401);
    if is_credential {
        let labels = [FORWARD_PATH];
        plane.metrics.auth_failures.with_label_values(&labels).inc();
        let wait = plane.failures.failed(peer.ip(), Instant::now());
        tokio::time::sleep(wait).await;
        refusal.detail.clear();
    }
    refusal.reason = shown;
    // What follows a refused upgrade is no request.
    refusal.close = true;
    let mut answer = refusal.answer(BodyKind::Problem);
    if is_credential {
        let bearer = HeaderValue::from_static("Bearer");
        answer.headers_mut().insert(WWW_AUTHENTICATE, bearer);
    }
    if answer.status() == StatusCode::UPGRADE_REQUIRED {
        let offer = HeaderValue::from_static(PROTOCOL);
        answer.headers_mut().insert(UPGRADE, offer);
    }
    answer
}

/// Who may reach what.
fn admit(plane: &Plane, request: &Request<Incoming>) -> Result<(Way, Origin), Refusal> {
    let bad = |reason, why: &str| Refusal::new(reason, why);
    let upgrades = request.headers().get(UPGRADE);
    let is_ours =
        upgrades.is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()));
    if request.method() != Method::GET || request.version() != Version::HTTP_11 || !is_ours {
        let why = "Ask with GET over HTTP/1.1 and Upgrade: culvert-tcp/1.";
        return Err(bad(CloseReason::NoCommonVersion, why));
    }
    let names = request.uri().path().strip_prefix(FORWARD_PATH);
    let (cluster, service) = names
        .and_then(|names| names.split_once('/'))
        .filter(|(_, service)| ServiceName::new(service).is_ok())
        .ok_or_else(|| {
            bad(
                CloseReason::UnknownPath,
                "The path is /forward/{cluster}/{service}.",
            )
        })?;
    let token = authenticate(plane, request, cluster)?;
    if !token.reaches(service) {
        let why = format!("This token does not reach service {service}.");
        return Err(Refusal::new(CloseReason::Forbidden, why));
    }
    let cluster = ClusterId::new(cluster);
    let cluster = cluster.map_err(|_| bad(CloseReason::UnknownCluster, ""))?;
    let way = Way {
        cluster,
        service: service.into(),
    };
    let origin = Origin::Forward {
        digest: token.digest,
        principal: token.principal,
    };
    Ok((way, origin))
}

/// One digest and one search, whatever was presented: for a cluster that does
/// not exist too.
fn authenticate(
    plane: &Plane,
    request: &Request<Incoming>,
    cluster: &str,
) -> Result<PersonalToken, Refusal> {
    let presented = bearer(request.headers()).unwrap_or_default();
    let digest = Digest(sha256(presented.as_bytes()));
    let table = plane.table.load();
    if table.source == crate::table::Source::None {
        return Err(Refusal::new(CloseReason::NoTable, ""));
    }
    let state = table.get(cluster).map(|cluster| cluster.state.clone());
    personal_token(state.as_deref(), &digest)
}

/// The live personal token of a cluster with this digest: one search, whether there is such a
/// cluster or not.
pub(super) fn personal_token(
    state: Option<&ClusterState>,
    digest: &Digest,
) -> Result<PersonalToken, Refusal> {
    let entries = state
        .iter()
        .flat_map(|state| state.personal_token_entries());
    let index = TokenIndex::build(entries.collect::<Vec<_>>()).unwrap_or_default();
    let found = index.find(digest, unix_ms());
    found.map_err(|why| Refusal::new(why.close_reason(), why.to_string()))?;
    let mut tokens = state.iter().flat_map(|state| &state.personal_tokens);
    let token = tokens.find(|token| token.digest == *digest);
    token
        .cloned()
        .ok_or_else(|| Refusal::new(CloseReason::Unauthenticated, ""))
}

/// The bearer token of a request, if it brings one.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The client has its 101: raw bytes from here on.
async fn join(begun: Begun, upgrade: OnUpgrade, in_flight: InFlight) {
    let wait = Duration::from_millis(UPGRADE_TIMEOUT_MS);
    let upgraded = match tokio::time::timeout(wait, upgrade).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(_)) => return begun.dropped(CloseReason::ClientReset),
        Err(_) => return begun.dropped(CloseReason::ClientTimeout),
    };
    match raw(upgraded) {
        Some((mut client, early)) => {
            begun.copy(&mut client, early).await;
        }
        None => begun.dropped(CloseReason::Internal),
    }
    drop(in_flight);
}
