//! Tables of field names, compared without regard to case and with `_` equal to `-`.

/// A name, or all names that start with a prefix.
#[derive(Clone, Copy)]
pub(super) enum Name {
    Is(&'static str),
    StartsWith(&'static str),
}

use Name::{Is, StartsWith};

/// Client copies never reach a service (security rule 3.5).
const PROTECTED: &[Name] = &[
    Is("authorization"),
    Is("cookie"),
    StartsWith("proxy-"),
    Is("forwarded"),
    StartsWith("x-forwarded-"),
    Is("x-real-ip"),
    StartsWith("x-original-"),
    StartsWith("x-rewrite-"),
    StartsWith("x-remote-"),
    StartsWith("impersonate-"),
    StartsWith("x-auth-"),
    StartsWith("x-webauth-"),
    Is("remote-user"),
    StartsWith("x-client-cert"),
    StartsWith("x-ssl-"),
    StartsWith("x-radar-"),
    StartsWith("culvert-"),
    Is("x-http-method-override"),
    Is("keep-alive"),
    Is("te"),
    Is("trailer"),
    Is("upgrade"),
    Is("transfer-encoding"),
    Is("http2-settings"),
];

/// Meant for the next hop only.
const HOP_BY_HOP: &[Name] = &[
    Is("connection"),
    Is("keep-alive"),
    StartsWith("proxy-"),
    Is("te"),
    Is("trailer"),
    Is("transfer-encoding"),
    Is("upgrade"),
    Is("http2-settings"),
];

/// What `Connection` may name although it is protected: the names it exists for.
pub(super) const CONNECTION_OPTIONS: &[Name] = &[
    Is("close"),
    Is("keep-alive"),
    Is("upgrade"),
    Is("te"),
    Is("trailer"),
    Is("http2-settings"),
];

/// Whether client copies of the field must be dropped: any case, `_` or `-`.
pub fn is_protected(name: &str) -> bool {
    matches(PROTECTED, name)
}

/// Whether the field is meant for the next hop only: any case, `_` or `-`.
pub fn is_hop_by_hop(name: &str) -> bool {
    matches(HOP_BY_HOP, name)
}

pub(super) fn matches(table: &[Name], name: &str) -> bool {
    table.iter().any(|entry| match entry {
        Is(exact) => name.len() == exact.len() && starts_with(name, exact),
        StartsWith(prefix) => starts_with(name, prefix),
    })
}

fn starts_with(name: &str, prefix: &str) -> bool {
    let start = name.as_bytes().get(..prefix.len());
    start.is_some_and(|start| start.iter().map(normal).eq(prefix.bytes()))
}

pub(super) fn normal(byte: &u8) -> u8 {
    if *byte == b'_' {
        b'-'
    } else {
        byte.to_ascii_lowercase()
    }
}
