//! Routes of the file.

use culvert_proto::limits::ROUTES_PER_CLUSTER_MAX;
use culvert_proto::update::{Route, RouteKind, ServiceName, SniPattern};

use super::check::Place;
use super::{At, Entry, RouteEntry, listen_addr};

/// The routes of `entry` that are right, with their lines.
pub(super) fn routes(entry: &Entry, place: &mut Place<'_>) -> Vec<(u64, Route)> {
    if entry.routes.len() > ROUTES_PER_CLUSTER_MAX {
        let why = format!(
            "are {}; at most {ROUTES_PER_CLUSTER_MAX}",
            entry.routes.len()
        );
        place.say(entry.id.line, "routes", why);
    }
    let routes = entry.routes.iter();
    routes
        .filter_map(|written| {
            let At { value, line } = &written.service;
            let service = ServiceName::new(value).map_err(|why| format!("is no {why}"));
            let service = place.keep(*line, "routes.service", service);
            let kind = kind(written, place);
            Some((
                *line,
                Route {
                    service: service?,
                    kind: kind?,
                },
            ))
        })
        .collect()
}

fn kind(written: &RouteEntry, place: &mut Place<'_>) -> Option<RouteKind> {
    let mut listen = |field, at: &At<String>| {
        let addr = place.keep(at.line, field, listen_addr(&at.value))?;
        Some(addr.to_string().into())
    };
    match (&written.tcp, &written.sealed, &written.addr) {
        (Some(tcp), None, None) => {
            let addr = listen("routes.tcp", tcp)?;
            Some(RouteKind::Tcp { addr })
        }
        (None, Some(sealed), own) => {
            let addr = match own {
                Some(own) => Some(listen("routes.addr", own)?),
                None => None,
            };
            let sni = SniPattern::new(&sealed.value).map_err(|why| format!("is no {why}"));
            let sni = place.keep(sealed.line, "routes.sealed", sni)?;
            Some(RouteKind::Sealed { sni, addr })
        }
        (Some(_), None, Some(addr)) => {
            place.say(
                addr.line,
                "routes.addr",
                "is for sealed alone; tcp names its address",
            );
            None
        }
        (tcp, sealed, _) => {
            let both = tcp.is_some() && sealed.is_some();
            let seen = if both { "both" } else { "neither" };
            let line = written.service.line;
            place.say(
                line,
                "routes",
                format!("wants one of tcp and sealed; {seen} given"),
            );
            None
        }
    }
}
