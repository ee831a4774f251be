//! Heads between hub and target. The hub built the request head; the agent
//! takes out what belongs to one hop, and trusts no identity it would not give.

use bytes::{Bytes, BytesMut};
use culvert_proto::head as rules;
use culvert_proto::limits::GROUPS_MAX;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HeaderMap, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, StatusCode, Uri, Version, request, response};
use http_body::Frame;

use crate::ceiling::{Above, Ceiling};
use crate::target::TargetKind;

/// What the request asks of the two connections it travels on.
pub struct Hop {
    /// The protocol the client wants to change to.
    pub upgrade: Option<HeaderValue>,
    /// Trailers of the answer will be understood.
    pub trailers: bool,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
}

/// Why a request is not forwarded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// CONNECT or a target that is neither a path nor `*`.
    #[error("the request target is not a path")]
    NotAPath,
    /// An identity header that is not one readable value.
    #[error("{0} is not one readable value")]
    Unreadable(HeaderName),
    /// Groups, uid or extra fields without exactly one user.
    #[error("an identity needs exactly one Impersonate-User")]
    NoUser,
    /// More than this agent gives.
    #[error(transparent)]
    Above(#[from] Above),
    /// More groups than [`GROUPS_MAX`].
    #[error("more than {GROUPS_MAX} groups")]
    TooManyGroups,
    /// An upgrade that carries a body.
    #[error("a request for an upgrade may not carry a body")]
    UpgradeBody,
}

/// Makes the hub's request head fit for the target.
///
/// # Errors
/// [`HeadError`]; nothing is forwarded then.
pub fn request(
    head: &mut request::Parts,
    (kind, ceiling): (TargetKind, &Ceiling),
    body_empty: bool,
) -> Result<Hop, HeadError> {
    path_only(head)?;
    identity(&head.headers)?;
    ceiling.judge(&head.headers, kind == TargetKind::Kube)?;
    let hop = Hop {
        upgrade: wanted_upgrade(&head.headers),
        trailers: has_token(&head.headers, &TE, "trailers"),
        expects_continue: !body_empty && has_token(&head.headers, &EXPECT, "100-continue"),
    };
    if hop.upgrade.is_some() && !body_empty {
        return Err(HeadError::UpgradeBody);
    }
    let trailer = head.headers.remove(TRAILER).filter(|_| !body_empty);
    strip_hop(&mut head.headers);
    if kind == TargetKind::Kube {
        strip_forwarded(&mut head.headers);
    }
    let headers = &mut head.headers;
    if let Some(upgrade) = &hop.upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade.clone());
    } else if hop.trailers {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(trailer) = trailer {
        headers.insert(TRAILER, trailer);
    }
    Ok(hop)
}

/// Makes the target's response head fit for the hub. `upgraded` is the protocol
/// of an accepted upgrade.
pub fn response(head: &mut response::Parts, hop: &Hop, upgraded: Option<HeaderValue>) {
    let headers = &mut head.headers;
    let trailer = headers.remove(TRAILER).filter(|_| hop.trailers);
    strip_response(headers);
    if let Some(protocol) = upgraded {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    if let Some(trailer) = trailer {
        headers.insert(TRAILER, trailer);
    }
}

/// The target's informational answer as it is written to the hub.
#[must_use]
pub fn informational(status: StatusCode, headers: &HeaderMap) -> Bytes {
    let mut headers = headers.clone();
    strip_response(&mut headers);
    headers.remove(CONTENT_LENGTH);
    let reason = status.canonical_reason().unwrap_or_default();
    let mut out = BytesMut::from(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
    write_fields(&mut out, headers.iter());
    out.extend_from_slice(b"\r\n");
    out.freeze()
}

/// The fields of the target's trailer section that may travel, as lines.
#[must_use]
pub fn trailer_lines(trailers: &HeaderMap) -> Bytes {
    let rules = rules::ResponseRules {
        hub_origin: false,
        from_agent: false,
    };
    let passes =
        |name: &HeaderName| rules::response_trailer(name.as_str(), &rules) == rules::Verdict::Pass;
    let mut out = BytesMut::new();
    write_fields(&mut out, trailers.iter().filter(|(name, _)| passes(name)));
    out.freeze()
}

fn write_fields<'a>(
    out: &mut BytesMut,
    fields: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
) {
    for (name, value) in fields {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether what comes back may carry trailers.
#[must_use]
pub fn takes_trailers<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11 && has_token(request.headers(), &TE, "trailers")
}

/// Drops trailers of a request that would pass for something only a head may say.
pub fn clean_trailers<D>(frame: Frame<D>) -> Frame<D> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            let bad: Vec<HeaderName> = trailers
                .keys()
                .filter(|name| !may_trail(name.as_str()))
                .cloned()
                .collect();
            for name in bad {
                trailers.remove(name);
            }
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

fn path_only(head: &mut request::Parts) -> Result<(), HeadError> {
    if head.method == Method::CONNECT {
        return Err(HeadError::NotAPath);
    }
    if head.uri.scheme().is_none() && head.uri.authority().is_none() {
        return Ok(());
    }
    let path = head
        .uri
        .path_and_query()
        .cloned()
        .ok_or(HeadError::NotAPath)?;
    head.uri = Uri::from(path);
    Ok(())
}

/// The hub sets identities; the agent refuses those that no hub may set, so
/// that a stolen hub is not enough (security.md T3, T4).
fn identity(headers: &HeaderMap) -> Result<(), HeadError> {
    let (mut users, mut groups, mut others) = (0, 0, 0);
    for (name, value) in headers {
        let Some(what) = name.as_str().strip_prefix("impersonate-") else {
            continue;
        };
        let text = std::str::from_utf8(value.as_bytes())
            .map_err(|_| HeadError::Unreadable(name.clone()))?;
        if text.trim().is_empty() {
            return Err(HeadError::Unreadable(name.clone()));
        }
        match what {
            "user" => users += 1,
            "group" => groups += 1,
            _ => others += 1,
        }
    }
    if groups > GROUPS_MAX {
        return Err(HeadError::TooManyGroups);
    }
    let consistent = users == 1 || (users == 0 && groups == 0 && others == 0);
    if consistent {
        Ok(())
    } else {
        Err(HeadError::NoUser)
    }
}

fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = has_token(headers, &CONNECTION, "upgrade");
    headers.get(UPGRADE).filter(|_| asked).cloned()
}

/// Whether a list header holds `token`, in any case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|one| one.eq_ignore_ascii_case(token))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter();
    let lists = lines.filter_map(|line| line.to_str().ok());
    lists.flat_map(|list| list.split(',').map(str::trim))
}

/// Removes what belongs to one connection. A `Connection` token never removes
/// an identity, a length or the host.
fn strip_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            .filter(|name| !is_protected(name.as_str()))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [&TE, &TRAILER, &TRANSFER_ENCODING, &UPGRADE] {
        headers.remove(name);
    }
    for name in [
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "proxy-authenticate",
        "proxy-authentication-info",
    ] {
        headers.remove(name);
    }
}

fn strip_response(headers: &mut HeaderMap) {
    strip_hop(headers);
    let own: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_ours(name.as_str()))
        .cloned()
        .collect();
    for name in own {
        headers.remove(name);
    }
}

fn strip_forwarded(headers: &mut HeaderMap) {
    let found: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.starts_with("x-forwarded-") || name.starts_with("x-remote-") || *name == FORWARDED
        })
        .cloned()
        .collect();
    for name in found {
        headers.remove(name);
    }
}

/// Names that only hub and agent write.
fn is_ours(name: &str) -> bool {
    name.starts_with("culvert-")
}

/// Names that `Connection` may not take away.
fn is_protected(name: &str) -> bool {
    matches!(name, "host" | "content-length") || rules::is_protected(name)
}

fn may_trail(name: &str) -> bool {
    !(name == "set-cookie" || is_protected(name) || rules::is_hop_by_hop(name))
}
