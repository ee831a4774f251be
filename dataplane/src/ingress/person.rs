//! A request of a person: who it is, what they may do here, and as whom.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, HeaderMap, HeaderValue, LOCATION, WWW_AUTHENTICATE,
};
use http::request::Parts;
use http::{Method, Response, StatusCode};

use culvert_identity::{Denied, Identity};
use culvert_net::crypto::sha256;
use culvert_proto::answer::BodyKind;
use culvert_proto::close::CloseReason;
use culvert_proto::route::PEOPLE_PREFIX;
use culvert_proto::token::Digest;
use culvert_proto::update::EVERY_SERVICE;

use super::body::Body;
use super::caller::{Caller, Person, Who};
use super::forward::{bearer, personal_token};
use super::head::Asked;
use super::refuse::Refusal;
use crate::people::{NotSignedIn, SignedIn};
use crate::plane::{Plane, unix_ms};
use crate::table::{Cluster, Table};
use crate::watches::{WATCHES_PER_PERSON_MAX, Watching, asks_for_one};

/// Where people go to sign in.
const LOGIN: &str = "/api/auth/login?return=";

/// Somebody who is known; what they may do is still to be decided.
pub struct Known {
    /// Who.
    pub who: Who,
    renewed: Option<HeaderValue>,
}

/// A person who may do what they ask for.
pub struct Admitted {
    /// Who, and as whom.
    pub caller: Caller,
    /// Their session, sealed anew.
    pub renewed: Option<HeaderValue>,
    /// Their place, if they ask for a stream without an end.
    pub watching: Option<Watching>,
}

/// Who sends this request: a personal token in `Authorization`, else a session.
///
/// # Errors
/// 401: neither is good.
pub fn known(table: &Table, cluster: &str, headers: &HeaderMap) -> Result<Known, Refusal> {
    if let Some(token) = bearer(headers) {
        return by_token(table, cluster, token);
    }
    let people = table.people.as_ref().ok_or_else(|| {
        let why = "Nobody can sign in here: control has no --cookie-password.";
        Refusal::new(CloseReason::Unauthenticated, why)
    })?;
    let signed_in = people.session(headers, unix_ms() / 1000);
    let SignedIn { session, renewed } = signed_in.map_err(|why| {
        let detail = match why {
            NotSignedIn::NoCookie => "There is no session cookie, or more than one.".to_owned(),
            NotSignedIn::Cookie(why) => format!("The session cookie is refused: {why}."),
        };
        Refusal::new(CloseReason::Unauthenticated, detail)
    })?;
    Ok(Known {
        who: Who::Session(session),
        renewed,
    })
}

/// A token that reaches every service of the cluster reaches its HTTP target.
fn by_token(table: &Table, cluster: &str, presented: &str) -> Result<Known, Refusal> {
    let state = table.get(cluster).map(|cluster| cluster.state.clone());
    let digest = Digest(sha256(presented.as_bytes()));
    let token = personal_token(state.as_deref(), &digest)?;
    if !token.reaches(EVERY_SERVICE) {
        let why = "This token reaches single services; /c/ wants one for every service (*).";
        return Err(Refusal::new(CloseReason::Forbidden, why));
    }
    Ok(Known {
        who: Who::Token {
            principal: token.principal,
            id: token.id,
        },
        renewed: None,
    })
}

impl Admitted {
    /// Whoever reaches the internal listener.
    pub fn machine() -> Self {
        Self {
            caller: Caller::Machine,
            renewed: None,
            watching: None,
        }
    }
}

impl Known {
    /// A person who may do it, as `identity`.
    ///
    /// # Errors
    /// 429: too many streams.
    pub fn admit(
        self,
        plane: &Plane,
        cluster: &Cluster,
        parts: &Parts,
        identity: Identity,
    ) -> Result<Admitted, Refusal> {
        let (policy, now_ms) = (&cluster.access, unix_ms());
        let tier = match &identity {
            Identity::Impersonated {
                tier: Some(tier), ..
            } => Some(*tier),
            _ => policy.tier(self.who.as_asked(), now_ms),
        };
        let watching = match self.is_session() && asks_for_one(parts) {
            false => None,
            true => Some(plane.watches.begin(self.who.subject()).ok_or_else(|| {
                let why = format!("{WATCHES_PER_PERSON_MAX} watch streams are open.");
                Refusal::new(CloseReason::CapUser, why)
            })?),
        };
        Ok(Admitted {
            renewed: self.renewed,
            watching,
            caller: Caller::Person(Arc::new(Person {
                who: self.who,
                tier,
                identity,
            })),
        })
    }

    /// As whom they may do it, by the cluster's policy.
    ///
    /// # Errors
    /// 403: nothing, not this, or not from there.
    pub fn may(
        &self,
        table: &Table,
        cluster: &Cluster,
        parts: &Parts,
        asked: &Asked,
    ) -> Result<Identity, Refusal> {
        let reads = only_reads(parts, asked);
        let people = table.people.as_ref();
        if self.is_session() && !people.is_some_and(|it| it.is_own_name(&parts.uri, &parts.headers))
        {
            let why = "A session counts at our own name only: ask for the host of --public-url or of \
                       one of --allowed-origins, and have proxies pass Host on.";
            return Err(Refusal::new(CloseReason::Forbidden, why));
        }
        if self.is_session() && !reads && !people.is_some_and(|it| it.is_own_page(&parts.headers)) {
            let why = "A session changes something, or upgrades, from our own pages only: send \
                       Origin of --public-url or of one of --allowed-origins.";
            return Err(Refusal::new(CloseReason::Forbidden, why));
        }
        let policy = &cluster.access;
        let identity = policy.decide(self.who.as_asked(), unix_ms());
        let identity = identity.map_err(denied)?;
        if policy.only_reads(&identity) && !reads {
            let why = format!(
                "Their access to cluster {} is read-only: GET, HEAD and OPTIONS pass, upgrades do \
                 not.",
                cluster.state.id
            );
            return Err(Refusal::new(CloseReason::Forbidden, why));
        }
        Ok(identity)
    }

    fn is_session(&self) -> bool {
        matches!(self.who, Who::Session(_))
    }
}

/// Whether a request changes nothing, by its method, and opens no conversation.
pub fn only_reads(parts: &Parts, asked: &Asked) -> bool {
    matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) && asked.upgrade.is_none()
}

fn denied(why: Denied) -> Refusal {
    let reason = match why {
        Denied::Empty | Denied::NoTier | Denied::NotAllowed => CloseReason::NoIdentity,
        Denied::Reserved | Denied::Unprintable | Denied::TooManyGroups => CloseReason::Forbidden,
    };
    Refusal::new(reason, format!("Access policy: {why}."))
}

/// Answers a person's request that is refused: a browser that only has to sign in is sent there,
/// and who shows bad tokens waits.
pub async fn refuse(
    plane: &Plane,
    peer: SocketAddr,
    parts: &Parts,
    refusal: &Refusal,
    kind: BodyKind,
) -> Response<Body> {
    let mut shown = refusal.clone();
    shown.reason = refusal.reason.for_stranger();
    if shown.reason.http_status() != Some(401) {
        return shown.answer(kind);
    }
    if let Some(page) = sign_in_page(parts).and_then(|page| HeaderValue::try_from(page).ok()) {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::FOUND;
        answer.headers_mut().insert(LOCATION, page);
        let no_store = HeaderValue::from_static("no-store");
        answer.headers_mut().insert(CACHE_CONTROL, no_store);
        return answer;
    }
    if bearer(&parts.headers).is_some() {
        plane
            .metrics
            .auth_failures
            .with_label_values(&[PEOPLE_PREFIX])
            .inc();
        let wait = plane.failures.failed(peer.ip(), Instant::now());
        tokio::time::sleep(wait).await;
        shown.detail.clear();
    }
    // In the one form that tells nothing about the cluster.
    let mut answer = shown.answer(BodyKind::Problem);
    let bearer = HeaderValue::from_static("Bearer");
    answer.headers_mut().insert(WWW_AUTHENTICATE, bearer);
    answer
}

/// Where a browser goes that shows a page and is not signed in; `None` for programs.
fn sign_in_page(parts: &Parts) -> Option<String> {
    let value = |name: &str| parts.headers.get(name).and_then(|it| it.to_str().ok());
    let is_page = match value("sec-fetch-mode") {
        Some(mode) => mode == "navigate",
        None => value("accept").is_some_and(|accept| accept.contains("text/html")),
    };
    if parts.method != Method::GET || !is_page || parts.headers.contains_key(AUTHORIZATION) {
        return None;
    }
    let back = parts.uri.path_and_query()?.as_str();
    let mut page = String::with_capacity(LOGIN.len() + back.len() * 3);
    page.push_str(LOGIN);
    for byte in back.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                page.push(char::from(byte));
            }
            _ => page.push_str(&format!("%{byte:02X}")),
        }
    }
    Some(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_sent_to_sign_in_and_comes_back_and_a_program_is_told() {
        let page = |method: &str, target: &str, headers: &[(&str, &str)]| {
            let mut request = http::Request::builder().method(method).uri(target);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            sign_in_page(&request.body(()).unwrap().into_parts().0)
        };
        let navigates = ("sec-fetch-mode", "navigate");
        let html = ("accept", "text/html,*/*;q=0.8");
        assert_eq!(
            page("GET", "/c/a/x?y=1&z=%2F", &[navigates]).as_deref(),
            Some("/api/auth/login?return=/c/a/x%3Fy%3D1%26z%3D%252F")
        );
        assert!(page("GET", "/c/a/", &[html]).is_some());
        for (method, headers) in [
            ("GET", &[][..]),
            ("GET", &[("accept", "application/json")]),
            ("GET", &[html, ("sec-fetch-mode", "cors")]),
            ("POST", &[html]),
            ("GET", &[html, ("authorization", "Bearer x")]),
        ] {
            assert_eq!(page(method, "/c/a/", headers), None, "{method} {headers:?}");
        }
    }
}
