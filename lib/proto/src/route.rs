//! Which cluster a request path names (P10). Reads raw bytes; nothing is decoded.

use crate::close::CloseReason;
use crate::id::{ClusterId, IdError};

/// Prefix of machine URLs on the internal listener.
pub const TUNNEL_PREFIX: &str = "/tunnel/";
/// Prefix of people's URLs.
pub const PEOPLE_PREFIX: &str = "/c/";

/// A request target that names a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelRoute<'a> {
    /// The cluster id; its pattern holds.
    pub cluster: &'a str,
    /// Path and query for the target, byte for byte; starts with `/`.
    pub rest: &'a str,
}

/// Why a request target names no cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The path is outside the prefix.
    #[error("the path does not start with /tunnel/<cluster>/ or /c/<cluster>/")]
    NotTunnel,
    /// The cluster segment does not match the pattern of cluster ids.
    #[error("the cluster in the path is not a cluster id")]
    BadCluster,
    /// An encoded, dotted or empty segment, a backslash or a `;` where the cluster is named.
    #[error("the path up to the cluster holds a trick: %, \\, ;, a dot segment or //")]
    Trick,
    /// A byte that no request target may hold.
    #[error("the request target holds a space, a control byte or a byte over 0x7e")]
    Byte,
    /// `/tunnel/<cluster>?query`, which has no path to forward.
    #[error("a slash is missing between the cluster and the query")]
    NoPath,
}

/// Splits `/tunnel/{cluster}/...`; `raw` is the request target in origin form, query included.
pub fn parse_tunnel_path(raw: &str) -> Result<TunnelRoute<'_>, RouteError> {
    parse_cluster_path(TUNNEL_PREFIX, raw)
}

/// Splits `{prefix}{cluster}/...`; `prefix` starts and ends with `/`.
pub fn parse_cluster_path<'a>(prefix: &str, raw: &'a str) -> Result<TunnelRoute<'a>, RouteError> {
    if raw.bytes().any(|byte| !(0x21..=0x7e).contains(&byte)) {
        return Err(RouteError::Byte);
    }
    let Some(tail) = raw.strip_prefix(prefix) else {
        return Err(outside(prefix, raw));
    };
    let end = tail.find(['/', '?']).unwrap_or(tail.len());
    let (cluster, rest) = tail.split_at(end);
    let dots = matches!(cluster, "." | "..");
    let empty = cluster.is_empty() && rest.starts_with('/');
    if dots || empty || cluster.contains(['%', '\\', ';']) {
        return Err(RouteError::Trick);
    }
    ClusterId::check(cluster).map_err(|_: IdError| RouteError::BadCluster)?;
    match rest {
        "" => Ok(TunnelRoute { cluster, rest: "/" }),
        _ if rest.starts_with('?') => Err(RouteError::NoPath),
        _ => Ok(TunnelRoute { cluster, rest }),
    }
}

/// A path that would be inside the prefix for a server that decodes or normalises is a trick.
fn outside(prefix: &str, raw: &str) -> RouteError {
    let path = raw.split('?').next().unwrap_or(raw);
    let word = prefix.trim_matches('/');
    let near = path.starts_with("//")
        || path.starts_with("/.")
        || path.get(1..1 + word.len()).is_some_and(|start| {
            start.eq_ignore_ascii_case(word) && path[1 + word.len()..].starts_with(['%', '\\', ';'])
        });
    if near {
        RouteError::Trick
    } else {
        RouteError::NotTunnel
    }
}

impl RouteError {
    /// The answer to give.
    pub fn close_reason(self) -> CloseReason {
        match self {
            RouteError::NotTunnel => CloseReason::UnknownPath,
            RouteError::BadCluster => CloseReason::UnknownCluster,
            RouteError::Trick | RouteError::Byte | RouteError::NoPath => CloseReason::BadHead,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn good_paths() {
        for (raw, cluster, rest) in [
            ("/tunnel/a/", "a", "/"),
            ("/tunnel/a", "a", "/"),
            (
                "/tunnel/prod-eu/api/v1/pods?watch=1",
                "prod-eu",
                "/api/v1/pods?watch=1",
            ),
            ("/tunnel/a/?x=/tunnel/b/", "a", "/?x=/tunnel/b/"),
            ("/tunnel/a//b/../%2e%2e/;x\\", "a", "//b/../%2e%2e/;x\\"),
            ("/tunnel/a/../b/secret", "a", "/../b/secret"),
        ] {
            assert_eq!(
                parse_tunnel_path(raw),
                Ok(TunnelRoute { cluster, rest }),
                "{raw}"
            );
        }
    }

    #[test]
    fn tricks_and_misses() {
        let long = alloc::format!("/tunnel/{}/", "a".repeat(64));
        for (raw, error) in [
            ("/", RouteError::NotTunnel),
            ("", RouteError::NotTunnel),
            ("*", RouteError::NotTunnel),
            ("/tunnel", RouteError::NotTunnel),
            ("/tunnels/a/", RouteError::NotTunnel),
            ("/TUNNEL/a/", RouteError::NotTunnel),
            ("http://host/tunnel/a/", RouteError::NotTunnel),
            ("/tunnel/", RouteError::BadCluster),
            ("/tunnel/A/", RouteError::BadCluster),
            ("/tunnel/a_b/", RouteError::BadCluster),
            ("/tunnel/-a/", RouteError::BadCluster),
            ("/tunnel/a:b/", RouteError::BadCluster),
            (&long, RouteError::BadCluster),
            ("/tunnel/?a", RouteError::BadCluster),
            ("/tunnel//a/", RouteError::Trick),
            ("/tunnel/../a/", RouteError::Trick),
            ("/tunnel/./a/", RouteError::Trick),
            ("/tunnel/..", RouteError::Trick),
            ("/tunnel/a%2Fb/", RouteError::Trick),
            ("/tunnel/%61/", RouteError::Trick),
            ("/tunnel/%2e%2e/a/", RouteError::Trick),
            ("/tunnel/a;v=1/", RouteError::Trick),
            ("/tunnel/a\\b/", RouteError::Trick),
            ("//tunnel/a/", RouteError::Trick),
            ("/./tunnel/a/", RouteError::Trick),
            ("/../tunnel/a/", RouteError::Trick),
            ("/tunnel%2Fa/", RouteError::Trick),
            ("/tunnel;x/a/", RouteError::Trick),
            ("/tunnel\\a/", RouteError::Trick),
            ("/tunnel/a?x", RouteError::NoPath),
            ("/tunnel/a/ b", RouteError::Byte),
            ("/tunnel/a/\u{e9}", RouteError::Byte),
            ("/tunnel/a/\0", RouteError::Byte),
            ("/tunnel/a/\r\nHost: b", RouteError::Byte),
        ] {
            assert_eq!(parse_tunnel_path(raw), Err(error), "{raw}");
        }
    }

    #[test]
    fn other_prefix() {
        let route = parse_cluster_path("/c/", "/c/eu/x").unwrap();
        assert_eq!((route.cluster, route.rest), ("eu", "/x"));
    }

    proptest! {
        /// What is routed is what is forwarded: prefix + cluster + rest give the input back.
        #[test]
        fn byte_exact(cluster in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", rest in "/[!-~]{0,60}") {
            let raw = alloc::format!("/tunnel/{cluster}{rest}");
            let route = parse_tunnel_path(&raw).unwrap();
            prop_assert_eq!(route.cluster, cluster);
            prop_assert_eq!(route.rest, rest);
        }

        #[test]
        fn any_text_is_safe(raw in "(/tunnel)?[/a-z.%;\\\\?-]{0,12}\\PC{0,8}") {
            if let Ok(route) = parse_tunnel_path(&raw) {
                prop_assert!(ClusterId::check(route.cluster).is_ok());
                prop_assert!(route.rest.starts_with('/'));
                prop_assert!(raw.ends_with(route.rest) || route.rest == "/");
            }
        }
    }
}
