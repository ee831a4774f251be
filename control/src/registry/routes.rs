//! Routes of clusters: pure decisions.

use culvert_config::clusters::Claims;
use culvert_proto::limits::ROUTES_PER_CLUSTER_MAX as ROUTES_MAX;
use culvert_proto::update;

use super::Refused;
use crate::cluster::{Cluster, Route, listens};
use crate::hub::Clusters;

/// The cluster with one more route; `held` is every cluster with its routes.
///
/// # Errors
/// [`Refused::TooManyRoutes`], [`Refused::RouteTaken`].
pub fn add_route(
    cluster: &Cluster,
    held: &Clusters,
    route: update::Route,
    now_ms: u64,
) -> Result<Cluster, Refused> {
    if cluster.routes.len() >= ROUTES_MAX {
        return Err(Refused::TooManyRoutes(cluster.id.clone()));
    }
    let mut claims = Claims::default();
    for (id, cluster) in held {
        for route in &cluster.routes {
            // What stands already was checked when it came.
            let _ = claims.claim(&route.route.kind, (id, route));
        }
    }
    let fresh = Route::new(route, now_ms);
    if let Err((id, holder)) = claims.claim(&fresh.route.kind, (&cluster.id, &fresh)) {
        return Err(Refused::RouteTaken {
            wanted: listens(&fresh.route.kind),
            held: listens(&holder.route.kind),
            cluster: id.clone(),
            route: holder.id.clone(),
        });
    }
    let mut next = cluster.clone();
    next.routes.push(fresh);
    next.updated_unix_ms = now_ms;
    Ok(next)
}

/// The cluster without one of its routes.
///
/// # Errors
/// [`Refused::NoRoute`].
pub fn remove_route(cluster: &Cluster, id: &str, now_ms: u64) -> Result<Cluster, Refused> {
    let mut next = cluster.clone();
    next.routes.retain(|route| route.id != id);
    if next.routes.len() == cluster.routes.len() {
        return Err(Refused::NoRoute(cluster.id.clone(), id.to_owned()));
    }
    next.updated_unix_ms = now_ms;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Spec;
    use crate::registry::create;
    use culvert_config::clusters::route;
    use std::sync::Arc;

    fn tcp(port: usize) -> update::Route {
        route("pg", Some(&format!("127.0.0.1:{port}")), None, None).unwrap()
    }

    fn cluster(id: &str) -> Cluster {
        create(id.parse().unwrap(), Spec::default(), 1).unwrap()
    }

    #[test]
    fn a_route_is_refused_with_what_it_collides_with_in_any_cluster() {
        let (a, b) = (cluster("a"), cluster("b"));
        let a = add_route(&a, &Clusters::new(), tcp(1), 5).unwrap();
        let held = Clusters::from([(a.id.clone(), Arc::new(a.clone()))]);
        let sealed = route("web", None, Some("a.test"), Some("0.0.0.0:1")).unwrap();
        for (to, wanted) in [(&a, tcp(1)), (&b, tcp(1)), (&b, sealed)] {
            let refused = add_route(to, &held, wanted, 6).err().unwrap();
            let said = refused.to_string();
            assert!(
                said.contains(&format!(
                    "tcp 127.0.0.1:1, route {} of cluster a",
                    a.routes[0].id
                )),
                "{said}"
            );
        }
        let b = add_route(&b, &held, tcp(2), 7).unwrap();
        assert_ne!(a.routes[0].id, b.routes[0].id);
        assert_eq!(b.updated_unix_ms, 7);
        let gone = remove_route(&b, &b.routes[0].id, 8).unwrap();
        assert!(gone.routes.is_empty());
        let again = remove_route(&gone, "none", 9).err();
        assert_eq!(
            again,
            Some(Refused::NoRoute(gone.id.clone(), "none".to_owned()))
        );
    }

    #[test]
    fn the_limit_of_routes_holds() {
        let mut full = cluster("a");
        for port in 1..=ROUTES_MAX {
            full = add_route(&full, &Clusters::new(), tcp(port), 1).unwrap();
        }
        let more = add_route(&full, &Clusters::new(), tcp(9_999), 1).err();
        assert_eq!(more, Some(Refused::TooManyRoutes(full.id.clone())));
    }
}
