//! Routes of the file and of the API.

use culvert_proto::limits::ROUTES_PER_CLUSTER_MAX;
use culvert_proto::update::{Route, RouteKind, ServiceName, SniPattern};

use super::check::Place;
use super::{At, Entry, RouteEntry, listen_addr};

/// The route that four texts mean: one of `tcp` and `sealed` is given, and `addr` with
/// `sealed` alone.
///
/// # Errors
/// Everything that is wrong, as field and the sentence that follows its name.
pub fn route(
    service: &str,
    tcp: Option<&str>,
    sealed: Option<&str>,
    addr: Option<&str>,
) -> Result<Route, Vec<(&'static str, String)>> {
    let mut problems = Vec::new();
    let service =
        ServiceName::new(service).map_err(|why| problems.push(("service", format!("is no {why}"))));
    let mut listen = |field, text: &str| {
        let addr = listen_addr(text).map_err(|why| problems.push((field, why)));
        addr.map(|addr| addr.to_string().into()).ok()
    };
    let tcp_addr = tcp.and_then(|text| listen("tcp", text));
    let own_addr = addr.and_then(|text| listen("addr", text));
    let sni = sealed.map(SniPattern::new).transpose();
    let sni = sni.map_err(|why| problems.push(("sealed", format!("is no {why}"))));
    let unfit = match (tcp, sealed, addr) {
        (None, None, _) => Some(("tcp", "is missing; give one of tcp and sealed")),
        (Some(_), Some(_), _) => Some(("sealed", "stands beside tcp; give one of them")),
        (Some(_), None, Some(_)) => {
            Some(("addr", "is for sealed alone; tcp names its own address"))
        }
        _ => None,
    };
    problems.extend(unfit.map(|(field, why)| (field, why.to_owned())));
    let kind = match (tcp_addr, sni) {
        (Some(addr), _) => Some(RouteKind::Tcp { addr }),
        (None, Ok(Some(sni))) => Some(RouteKind::Sealed {
            sni,
            addr: own_addr,
        }),
        _ => None,
    };
    match (service, kind) {
        (Ok(service), Some(kind)) if problems.is_empty() => Ok(Route { service, kind }),
        _ => Err(problems),
    }
}

/// The routes of `entry` that are right, with their lines.
pub(super) fn routes(entry: &Entry, place: &mut Place<'_>) -> Vec<(u64, Route)> {
    let count = entry.routes.len();
    if count > ROUTES_PER_CLUSTER_MAX {
        let why = format!("are {count}; at most {ROUTES_PER_CLUSTER_MAX}");
        place.say(entry.id.line, "routes", why);
    }
    let mut routes = Vec::with_capacity(count);
    for RouteEntry {
        service,
        tcp,
        sealed,
        addr,
    } in &entry.routes
    {
        match route(&service.value, text(tcp), text(sealed), text(addr)) {
            Ok(route) => routes.push((service.line, route)),
            Err(problems) => {
                for (field, why) in problems {
                    let at = match field {
                        "tcp" => tcp.as_ref(),
                        "sealed" => sealed.as_ref(),
                        "addr" => addr.as_ref(),
                        _ => None,
                    };
                    let line = at.map_or(service.line, |at| at.line);
                    place.say(line, &format!("routes.{field}"), why);
                }
            }
        }
    }
    routes
}

fn text(at: &Option<At<String>>) -> Option<&str> {
    at.as_ref().map(|at| at.value.as_str())
}
