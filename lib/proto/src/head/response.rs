//! Response direction: service to client.

use super::names::{Name, is_hop_by_hop, is_protected, matches};
use super::{ConnectionTokens, Verdict};

use Name::{Is, StartsWith};

/// How response fields are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseRules {
    /// The answer goes to a browser under the hub's own origin (`/c/{cluster}/`), where a service
    /// must not set cookies or policy (T19).
    pub hub_origin: bool,
    /// The answer comes through an agent, whose own refusals carry `Culvert-Error`. False on the
    /// agent, where the answer comes from the service and may carry no such field.
    pub from_agent: bool,
}

const HUB_ORIGIN_DROPS: &[Name] = &[
    Is("set-cookie"),
    Is("set-cookie2"),
    Is("clear-site-data"),
    Is("service-worker-allowed"),
    Is("strict-transport-security"),
    Is("alt-svc"),
    StartsWith("access-control-"),
    // A proxy in front would obey them.
    StartsWith("x-accel-"),
    Is("x-sendfile"),
];

/// Framing is written anew.
const OURS: &[Name] = &[
    Is("content-length"),
    Is("host"),
    Is("sec-websocket-extensions"),
];

/// Whether a service's field is copied into the head towards the client.
pub fn response_field(name: &str, rules: &ResponseRules, connection: &ConnectionTokens) -> Verdict {
    if rules.from_agent && name.eq_ignore_ascii_case("culvert-error") {
        return Verdict::Pass;
    }
    let dropped = name.contains('_')
        || connection.names(name)
        || matches(OURS, name)
        || is_hop_by_hop(name)
        || is_protected(name)
        || (rules.hub_origin && matches(HUB_ORIGIN_DROPS, name));
    if dropped {
        Verdict::Drop
    } else {
        Verdict::Pass
    }
}

/// Whether a response trailer passes. gRPC needs its trailers; protected names never pass.
pub fn response_trailer(name: &str, rules: &ResponseRules) -> Verdict {
    let rules = ResponseRules {
        from_agent: false,
        ..*rules
    };
    match name.to_ascii_lowercase().as_str() {
        "content-type" | "content-encoding" | "content-range" | "set-cookie" => Verdict::Drop,
        _ => response_field(name, &rules, &ConnectionTokens::default()),
    }
}
