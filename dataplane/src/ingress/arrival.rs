//! Everything that can refuse a request before a stream is opened for it.

use std::net::SocketAddr;
use std::sync::Arc;

use http::request::Parts;
use http_body::Body as _;
use hyper::body::Incoming;

use culvert_proto::close::CloseReason;
use culvert_proto::route::{PEOPLE_PREFIX, RouteError, TUNNEL_PREFIX, TunnelRoute};

use super::Id;
use super::audited;
use super::head::{self, Asked};
use super::person::{self, Admitted};
use super::refuse::Refusal;
use super::tracked::Tracked;
use crate::plane::Plane;
use crate::table::{Cluster, Source, Table};

/// Where a request came in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// `/tunnel/{cluster}/...` of the internal listener.
    Machines,
    /// `/c/{cluster}/...` of the people's.
    People,
}

/// A request that arrives.
pub struct Arrival<'a> {
    /// Where.
    pub plane: &'a Arc<Plane>,
    /// By which way.
    pub door: Door,
    /// From where.
    pub peer: SocketAddr,
    /// Its id.
    pub id: &'a Id,
}

/// What a request turned out to be.
pub struct Judged {
    /// Whose service.
    pub cluster: Arc<Cluster>,
    /// Who asks, and what was taken for them.
    pub admitted: Admitted,
    /// What for.
    pub asked: Asked,
    /// Path and query for the service.
    pub rest: String,
}

impl Door {
    /// What its paths begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Machines => TUNNEL_PREFIX,
            Self::People => PEOPLE_PREFIX,
        }
    }
}

impl Arrival<'_> {
    /// What the request is, or why it is refused.
    pub fn judge(
        &self,
        table: &Table,
        routed: Result<TunnelRoute<'_>, RouteError>,
        (parts, body): (&Parts, &Incoming),
        tracked: &mut Tracked,
    ) -> Result<Judged, Refusal> {
        let plane = self.plane;
        let work = plane
            .begin()
            .ok_or_else(|| Refusal::new(CloseReason::Draining, ""))?;
        tracked.work(work);
        let (has_body, length) = (!body.is_end_stream(), body.size_hint().exact());
        let asked = head::judge(parts, has_body, length)?;
        let route = routed.map_err(|why| {
            let mut refusal = Refusal::new(why.close_reason(), why.to_string());
            refusal.close = refusal.reason == CloseReason::BadHead;
            refusal
        })?;
        // Who is nobody learns of no cluster.
        let known = match self.door {
            Door::Machines => None,
            Door::People => Some(person::known(table, route.cluster, &parts.headers)?),
        };
        let cluster = table.get(route.cluster).cloned();
        let cluster = cluster.ok_or_else(|| unknown(plane, route.cluster))?;
        if !cluster.state.enabled {
            return Err(Refusal::new(CloseReason::Disabled, ""));
        }
        check_length(plane, length)?;
        let admitted = match known {
            None => Admitted::machine(),
            Some(known) => {
                let identity = known.may(table, &cluster, parts, &asked);
                let identity = identity.inspect_err(|refusal| {
                    let what = (self.id, &*cluster, parts, route.rest);
                    audited::denied(plane, &known.who, what, refusal.reason);
                })?;
                known.admit(plane, &cluster, parts, identity)?
            }
        };
        // The cluster first: what it may not do costs its neighbours nothing.
        let slot = cluster.admit().and_then(|slot| {
            plane.limit_rate()?;
            Ok(slot)
        });
        tracked.hold(slot.inspect_err(|refusal| {
            if refusal.reason == CloseReason::RateLimited {
                plane.metrics.rate_limited.inc();
            }
        })?);
        Ok(Judged {
            cluster,
            admitted,
            asked,
            rest: route.rest.to_owned(),
        })
    }
}

fn unknown(plane: &Plane, cluster: &str) -> Refusal {
    if plane.table.load().source == Source::None {
        return Refusal::new(CloseReason::NoTable, "");
    }
    Refusal::new(CloseReason::UnknownCluster, format!("Cluster {cluster}."))
}

fn check_length(plane: &Plane, length: Option<u64>) -> Result<(), Refusal> {
    match (plane.config.body_bytes_max, length) {
        (Some(max), Some(length)) if length > max => {
            let detail = format!("The body has {length} bytes; {max} are allowed.");
            Err(Refusal::closing(CloseReason::BodyTooLarge, detail))
        }
        _ => Ok(()),
    }
}
