//! Request direction: client to service.

use alloc::string::String;

use super::names::{Name, is_hop_by_hop, is_protected, matches};
use super::{ConnectionTokens, HeadError, Verdict};

use Name::{Is, StartsWith};

/// What stands behind a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// A Kubernetes API server: only the closed list passes.
    Kube,
    /// Any HTTP service: all names without `_` that are not protected pass.
    Http,
}

/// How request fields of one route are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRules {
    /// What stands behind the route.
    pub kind: RouteKind,
    /// The cluster passes client `Impersonate-*` (C-31).
    pub allow_impersonation: bool,
    /// The service has a host name of its own, so its cookies pass; the caller removes ours.
    pub pass_cookies: bool,
}

/// The closed list of kube routes.
const CLOSED: &[Name] = &[
    Is("accept"),
    Is("accept-encoding"),
    Is("accept-language"),
    Is("content-type"),
    Is("content-encoding"),
    Is("user-agent"),
    StartsWith("if-"),
    Is("range"),
    Is("cache-control"),
    StartsWith("kubectl-"),
    Is("x-stream-protocol-version"),
    Is("sec-websocket-key"),
    Is("sec-websocket-version"),
    Is("sec-websocket-protocol"),
    Is("traceparent"),
    Is("tracestate"),
];

/// Written anew for every hop, or answered by ourselves, whatever the route.
const OURS: &[Name] = &[
    Is("host"),
    Is("content-length"),
    Is("expect"),
    Is("x-request-id"),
    Is("audit-id"),
    Is("sec-websocket-extensions"),
];

/// The only `Impersonate-*` fields that Kubernetes knows.
const IMPERSONATION: &[Name] = &[
    Is("impersonate-user"),
    Is("impersonate-group"),
    Is("impersonate-uid"),
    StartsWith("impersonate-extra-"),
];

/// Whether a client's field is copied into the head towards the service. `connection` is what the
/// same head's `Connection` lines say.
pub fn request_field(name: &str, rules: &RequestRules, connection: &ConnectionTokens) -> Verdict {
    // A name with `_` is somebody's alias of a name with `-`.
    if name.contains('_') || connection.names(name) || matches(OURS, name) {
        return Verdict::Drop;
    }
    if is_protected(name) || is_hop_by_hop(name) {
        let impersonation = rules.kind == RouteKind::Kube
            && rules.allow_impersonation
            && matches(IMPERSONATION, name);
        let cookie = rules.kind == RouteKind::Http
            && rules.pass_cookies
            && name.eq_ignore_ascii_case("cookie");
        return if impersonation || cookie {
            Verdict::Pass
        } else {
            Verdict::Drop
        };
    }
    match rules.kind {
        RouteKind::Http => Verdict::Pass,
        RouteKind::Kube if matches(CLOSED, name) => Verdict::Pass,
        RouteKind::Kube => Verdict::Drop,
    }
}

/// Whether a request trailer passes: never a protected or framing name.
pub fn request_trailer(name: &str, rules: &RequestRules) -> Verdict {
    let rules = RequestRules {
        allow_impersonation: false,
        pass_cookies: false,
        ..*rules
    };
    match name.to_ascii_lowercase().as_str() {
        "content-type" | "content-encoding" | "content-range" | "authorization" => Verdict::Drop,
        _ => request_field(name, &rules, &ConnectionTokens::default()),
    }
}

/// Checks the value of an `Impersonate-User` or `Impersonate-Group` that would pass: `system:`
/// identities are refused (T4), except a service account outside the `kube-` namespaces as user,
/// which is what ArgoCD's sync impersonation sends (C-31).
pub fn impersonation_value(name: &str, value: &[u8]) -> Result<(), HeadError> {
    let system = value
        .trim_ascii()
        .get(..7)
        .is_some_and(|s| s.eq_ignore_ascii_case(b"system:"));
    if !matches(IMPERSONATION, name) || !system {
        return Ok(());
    }
    let account = value.strip_prefix(b"system:serviceaccount:");
    let mut parts = account
        .into_iter()
        .flat_map(|rest| rest.split(|byte| *byte == b':'));
    let parts = (parts.next(), parts.next(), parts.next());
    let harmless = match parts {
        (Some(namespace), Some(account), None) => {
            dns_label(namespace) && dns_label(account) && !namespace.starts_with(b"kube-")
        }
        _ => false,
    };
    if harmless && matches(&[Is("impersonate-user")], name) {
        Ok(())
    } else {
        Err(HeadError::Impersonation {
            name: String::from(name),
        })
    }
}

fn dns_label(text: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !text.is_empty()
        && text
            .iter()
            .all(|byte| plain(byte) || matches!(byte, b'-' | b'.'))
}
