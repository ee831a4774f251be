//! A way to a service of a cluster.

use std::fmt::Write as _;

use culvert_net::crypto::sha256;
use culvert_proto::update::{self, RouteKind};

/// A route as control keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Made from what it listens for: the same again has the same id.
    pub id: String,
    /// What data planes learn.
    pub route: update::Route,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
}

impl Route {
    /// A route that is made now.
    #[must_use]
    pub fn new(route: update::Route, now_ms: u64) -> Self {
        let mut id = String::with_capacity(12);
        for byte in &sha256(listens(&route.kind).as_bytes())[..6] {
            let _ = write!(id, "{byte:02x}");
        }
        Self {
            id,
            route,
            created_unix_ms: now_ms,
        }
    }
}

/// What a route listens for, in words that no other route has.
#[must_use]
pub fn listens(kind: &RouteKind) -> String {
    match kind {
        RouteKind::Tcp { addr } => format!("tcp {addr}"),
        RouteKind::Sealed { sni, addr: None } => format!("sealed {sni}"),
        RouteKind::Sealed {
            sni,
            addr: Some(addr),
        } => format!("sealed {sni} at {addr}"),
    }
}
