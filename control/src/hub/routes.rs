//! Ways to services.

use culvert_proto::id::ClusterId;
use culvert_proto::update;

use super::{Hub, HubError};
use crate::audit::{Cause, Verb};
use crate::cluster::Route;
use crate::registry::file::is_of_file;
use crate::registry::routes::{add_route, remove_route};

impl Hub {
    /// Adds a way to a service of a cluster.
    ///
    /// # Errors
    /// When the cluster is unknown or has too many, when another route has the
    /// address or the server name, or when it cannot be recorded.
    pub async fn add_route(
        &self,
        cause: &Cause,
        id: &ClusterId,
        route: update::Route,
    ) -> Result<Route, HubError> {
        let fresh = Route::new(route.clone(), self.now_ms());
        let entry = cause.did(Verb::RouteCreate, id, &fresh.id, self.now_ms());
        self.decide(id, Some(entry), |cluster, now_ms| {
            Ok(add_route(cluster, &self.clusters.load(), route, now_ms)?)
        })
        .await?;
        tracing::info!(cluster = %id, route = fresh.id, service = %fresh.route.service, "route added");
        self.in_use().await;
        Ok(fresh)
    }

    /// Removes a way to a service; its connections end.
    ///
    /// # Errors
    /// When the cluster or the route is unknown, stands in the registry file, or
    /// the removal cannot be recorded.
    pub async fn remove_route(
        &self,
        cause: &Cause,
        id: &ClusterId,
        route_id: &str,
    ) -> Result<(), HubError> {
        let entry = cause.did(Verb::RouteDelete, id, route_id, self.now_ms());
        self.decide(id, Some(entry), |cluster, now_ms| {
            if is_of_file(route_id) && self.is_listed(id) {
                return Err(self.owned_by_file(id, "routes"));
            }
            Ok(remove_route(cluster, route_id, now_ms)?)
        })
        .await?;
        tracing::info!(cluster = %id, route = route_id, "route removed");
        self.in_use().await;
        Ok(())
    }
}
