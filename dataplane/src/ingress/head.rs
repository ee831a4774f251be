//! The request head: refused where two readers could differ, then built anew.
//!
//! What may pass is decided by `culvert_proto::head`; here its verdicts are
//! applied to what hyper parsed.

mod answer;
mod identity;

use bytes::{BufMut as _, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Version};

use culvert_proto::head::{
    ConnectionTokens, HeadError, HeadFacts, RequestRules, RouteKind, Verdict, check_request,
    impersonation_value, request_field, request_trailer,
};
use culvert_proto::limits::{COOKIES_MAX, HEAD_FIELD_BYTES_MAX};

pub use answer::{guard_pages, keep_response_fields, response_trailer_passes, trailer_names};
pub use identity::{Towards, write_identity};

use super::refuse::Refusal;
use super::upload::Framing;
use culvert_proto::close::CloseReason;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a request head asks for, beside its fields.
pub struct Asked {
    /// What `Connection` says.
    pub connection: ConnectionTokens,
    /// The protocol to upgrade to.
    pub upgrade: Option<HeaderValue>,
    /// How the body is framed towards the agent.
    pub framing: Framing,
    /// The client takes trailers.
    pub trailers: bool,
}

/// Checks a head that hyper accepted. `has_body` is hyper's word, `length` the
/// body's where it is known.
///
/// # Errors
/// What to answer; the connection is closed after it.
pub fn judge(parts: &Parts, has_body: bool, length: Option<u64>) -> Result<Asked, Refusal> {
    let headers = &parts.headers;
    let bad = |why: HeadError| Refusal::closing(why.close_reason(), why.to_string());
    limits(headers)?;
    let lines = headers
        .get_all(header::CONNECTION)
        .iter()
        .map(HeaderValue::as_bytes);
    let connection = ConnectionTokens::parse(lines).map_err(bad)?;
    let target = parts
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    let hosts = Lines::of(headers, &header::HOST);
    let codings = Lines::of(headers, &header::TRANSFER_ENCODING);
    let lengths = Lines::of(headers, &header::CONTENT_LENGTH);
    let upgrades = Lines::of(headers, &header::UPGRADE);
    check_request(&HeadFacts {
        method: parts.method.as_str(),
        target,
        authority: parts.uri.authority().map(http::uri::Authority::as_str),
        hosts: hosts.get(),
        transfer_encodings: codings.get(),
        content_lengths: lengths.get(),
        upgrades: upgrades.get(),
        connection: Some(&connection),
        has_body,
        body_on_get: false,
    })
    .map_err(bad)?;
    let upgrade = wanted_upgrade(parts, &connection);
    Ok(Asked {
        upgrade,
        framing: framing(&parts.method, has_body, length),
        trailers: takes_trailers(parts),
        connection,
    })
}

fn limits(headers: &HeaderMap) -> Result<(), Refusal> {
    let large = |(_, value): &(&HeaderName, &HeaderValue)| value.len() > HEAD_FIELD_BYTES_MAX;
    if let Some((name, _)) = headers.iter().find(large) {
        let detail = format!("{name} is longer than {HEAD_FIELD_BYTES_MAX} bytes");
        return Err(Refusal::closing(CloseReason::HeadTooLarge, detail));
    }
    let cookies = headers.get_all(header::COOKIE).iter();
    let count: usize = cookies
        .map(|line| line.as_bytes().split(|b| *b == b';').count())
        .sum();
    if count > COOKIES_MAX {
        let detail = format!("more than {COOKIES_MAX} cookies");
        return Err(Refusal::closing(CloseReason::HeadTooLarge, detail));
    }
    Ok(())
}

/// At most two lines of a field: one is right, two are wrong, more are not worse.
struct Lines<'a>([&'a [u8]; 2], usize);

impl<'a> Lines<'a> {
    fn of(headers: &'a HeaderMap, name: &HeaderName) -> Self {
        let mut lines = Self([b""; 2], 0);
        for value in headers.get_all(name).iter().take(2) {
            lines.0[lines.1] = value.as_bytes();
            lines.1 += 1;
        }
        lines
    }

    fn get(&self) -> &[&'a [u8]] {
        &self.0[..self.1]
    }
}

fn wanted_upgrade(parts: &Parts, connection: &ConnectionTokens) -> Option<HeaderValue> {
    if !connection.upgrade || parts.version != Version::HTTP_11 {
        return None;
    }
    let wanted = parts.headers.get(header::UPGRADE)?;
    // The offer of common clients; h2 to the service is the agent's own business.
    (!wanted.as_bytes().trim_ascii().eq_ignore_ascii_case(b"h2c")).then(|| wanted.clone())
}

fn framing(method: &Method, has_body: bool, length: Option<u64>) -> Framing {
    match length {
        _ if !has_body && matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {
            Framing::Length(0)
        }
        _ if !has_body => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    }
}

fn takes_trailers(parts: &Parts) -> bool {
    let te = parts.headers.get_all(header::TE).iter();
    let mut codings = te.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// What the new head needs beside the client's fields.
pub struct Route<'a> {
    /// Path and query, byte for byte.
    pub target: &'a str,
    /// `Host` of the service.
    pub host: &'a str,
    /// The request's id.
    pub request_id: &'a HeaderValue,
    /// Which fields pass.
    pub rules: RequestRules,
}

/// Builds the head towards the agent, up to [`end`].
///
/// # Errors
/// When a field that would pass asks for an identity nobody may take.
pub fn build(parts: &Parts, asked: &Asked, route: &Route<'_>) -> Result<BytesMut, Refusal> {
    let mut out = BytesMut::with_capacity(512);
    for part in [parts.method.as_str(), " ", route.target, " HTTP/1.1\r\n"] {
        out.put_slice(part.as_bytes());
    }
    field(&mut out, "host", route.host.as_bytes());
    for (name, value) in &parts.headers {
        if request_field(name.as_str(), &route.rules, &asked.connection) == Verdict::Drop {
            continue;
        }
        impersonation_value(name.as_str(), value.as_bytes())
            .map_err(|why| Refusal::new(why.close_reason(), why.to_string()))?;
        field(&mut out, name.as_str(), value.as_bytes());
    }
    field(&mut out, X_REQUEST_ID.as_str(), route.request_id.as_bytes());
    match asked.framing {
        Framing::None => {}
        Framing::Length(length) => {
            let mut digits = itoa(length);
            field(&mut out, "content-length", digits.text());
        }
        Framing::Chunked => field(&mut out, "transfer-encoding", b"chunked"),
    }
    match &asked.upgrade {
        Some(upgrade) => {
            field(&mut out, "connection", b"Upgrade");
            field(&mut out, "upgrade", upgrade.as_bytes());
        }
        // One request for each stream: the agent ends it with its answer.
        None if asked.trailers => {
            field(&mut out, "connection", b"close, te");
            field(&mut out, "te", b"trailers");
        }
        None => field(&mut out, "connection", b"close"),
    }
    Ok(out)
}

/// Ends a head.
pub fn end(out: &mut BytesMut) {
    out.put_slice(b"\r\n");
}

fn field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// Decimal digits without an allocation.
struct Digits([u8; 20], usize);

impl Digits {
    fn text(&mut self) -> &[u8] {
        &self.0[self.1..]
    }
}

fn itoa(mut number: u64) -> Digits {
    let mut digits = Digits([b'0'; 20], 20);
    loop {
        digits.1 -= 1;
        digits.0[digits.1] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            return digits;
        }
    }
}

/// Whether a request trailer may travel.
pub fn request_trailer_passes(name: &str, kind: RouteKind) -> bool {
    let rules = RequestRules {
        kind,
        allow_impersonation: false,
        pass_cookies: false,
    };
    request_trailer(name, &rules) == Verdict::Pass
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn get() -> http::request::Builder {
        http::Request::get("/tunnel/a/x?y=%2F").header("host", "hub")
    }

    fn built(parts: &Parts, kind: RouteKind, allow: bool) -> String {
        let asked = judge(parts, false, None).unwrap();
        let route = Route {
            target: "/x?y=%2F",
            host: "svc:80",
            request_id: &HeaderValue::from_static("id"),
            rules: RequestRules {
                kind,
                allow_impersonation: allow,
                pass_cookies: false,
            },
        };
        let mut head = build(parts, &asked, &route).unwrap();
        end(&mut head);
        String::from_utf8(head.to_vec()).unwrap()
    }

    #[test]
    fn the_head_is_built_from_what_passes() {
        let parts = parts(
            get()
                .header("accept", "a/b")
                .header("authorization", "Bearer secret")
                .header("x-forwarded-user", "root")
                .header("X_Forwarded_User", "root")
                .header("cookie", "a=b")
                .header("x-request-id", "forged")
                .header("x-custom", "kept")
                .header("x-named", "gone")
                .header("connection", "x-named, keep-alive"),
        );
        assert_eq!(
            built(&parts, RouteKind::Http, false),
            "GET /x?y=%2F HTTP/1.1\r\nhost: svc:80\r\naccept: a/b\r\nx-custom: kept\r\n\
             x-request-id: id\r\nconnection: close\r\n\r\n"
        );
        let kube = built(&parts, RouteKind::Kube, false);
        assert!(
            !kube.contains("x-custom") && kube.contains("accept: a/b"),
            "{kube}"
        );
    }

    #[test]
    fn impersonation_passes_only_where_the_cluster_allows_it() {
        let parts = parts(get().header("impersonate-user", "jane"));
        assert!(!built(&parts, RouteKind::Kube, false).contains("impersonate"));
        assert!(built(&parts, RouteKind::Kube, true).contains("impersonate-user: jane"));
    }

    #[test]
    fn heads_that_hyper_lets_through_are_refused() {
        let refused = |request: http::request::Builder| {
            let refusal = judge(&parts(request), false, None).err();
            refusal.map(|refusal| (refusal.reason, refusal.close))
        };
        let bad_head = Some((CloseReason::BadHead, true));
        let bad_framing = Some((CloseReason::BadFraming, true));
        assert_eq!(refused(get()), None);
        assert_eq!(refused(http::Request::get("/")), bad_head);
        assert_eq!(refused(get().header("host", "two")), bad_head);
        assert_eq!(
            refused(http::Request::get("http://x/").header("host", "y")),
            bad_head
        );
        assert_eq!(
            refused(get().header("transfer-encoding", "gzip, chunked")),
            bad_framing
        );
        assert_eq!(
            refused(get().header("connection", "x-forwarded-user")),
            bad_head
        );
        assert_eq!(
            refused(get().header("connection", "X_Forwarded_User")),
            bad_head
        );
        assert_eq!(
            refused(get().header("connection", "content-length")),
            bad_head
        );
        assert_eq!(refused(get().header("connection", "upgrade")), bad_head);
        let method = Some((CloseReason::BadHead, true));
        assert_eq!(refused(get().method("CONNECT")), method);
        let (long, limit) = (
            "a".repeat(HEAD_FIELD_BYTES_MAX + 1),
            "a".repeat(HEAD_FIELD_BYTES_MAX),
        );
        assert_eq!(refused(get().header("x", limit)), None);
        assert_eq!(
            refused(get().header("x", long)),
            Some((CloseReason::HeadTooLarge, true))
        );
        let cookies = |n: usize| vec!["a=b"; n].join("; ");
        assert_eq!(refused(get().header("cookie", cookies(COOKIES_MAX))), None);
        assert!(refused(get().header("cookie", cookies(COOKIES_MAX + 1))).is_some());
    }

    #[test]
    fn a_body_on_get_or_beside_an_upgrade_is_refused() {
        assert!(judge(&parts(get()), true, Some(1)).is_err());
        let upgrade = || {
            get()
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
        };
        assert!(
            judge(&parts(upgrade()), false, None)
                .unwrap()
                .upgrade
                .is_some()
        );
        assert!(judge(&parts(upgrade().method("POST")), true, None).is_err());
    }

    #[test]
    fn h2c_is_dropped_and_other_upgrades_are_written_anew() {
        let h2c = parts(
            get()
                .header("connection", "upgrade, http2-settings")
                .header("upgrade", "h2c"),
        );
        let head = built(&h2c, RouteKind::Http, false);
        assert!(
            head.ends_with("connection: close\r\n\r\n") && !head.contains("upgrade"),
            "{head}"
        );
        let spdy = parts(
            get()
                .header("connection", "Upgrade")
                .header("upgrade", "SPDY/3.1"),
        );
        let head = built(&spdy, RouteKind::Kube, false);
        assert!(
            head.ends_with("connection: Upgrade\r\nupgrade: SPDY/3.1\r\n\r\n"),
            "{head}"
        );
    }

    #[test]
    fn framing_follows_the_body() {
        let post = || parts(get().method("POST"));
        let framing = |body, length| judge(&post(), body, length).unwrap().framing;
        assert_eq!(framing(true, Some(5)), Framing::Length(5));
        assert_eq!(framing(true, None), Framing::Chunked);
        assert_eq!(framing(false, Some(0)), Framing::Length(0));
        assert_eq!(
            judge(&parts(get()), false, Some(0)).unwrap().framing,
            Framing::None
        );
        for number in [0, 7, 10, 1234567890, u64::MAX] {
            assert_eq!(itoa(number).text(), number.to_string().as_bytes());
        }
    }

    #[test]
    fn trailers_are_asked_for_when_the_client_takes_them() {
        let parts = parts(
            get()
                .header("te", "gzip, Trailers")
                .header("connection", "te"),
        );
        let head = built(&parts, RouteKind::Http, false);
        assert!(head.contains("te: trailers\r\n"), "{head}");
    }
}
