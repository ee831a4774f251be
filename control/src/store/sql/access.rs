//! Rows of routes and personal tokens: parts of their cluster.

use std::collections::HashMap;

use super::db::Connection;
use super::rows::{Result, digest_of, signed, unsigned};
use crate::cluster::{Cluster, Personal, Route};
use crate::store::error::RowError;
use culvert_proto::id::ClusterId;
use culvert_proto::update::{self, PersonalToken, RouteKind, ServiceName, SniPattern};

type RouteRow = (
    String,
    String,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    i64,
);
type PersonalRow = (String, String, Vec<u8>, String, String, i64, Option<i64>);

/// By cluster, in the order they were written.
pub(super) async fn load_routes(
    connection: &mut Connection,
    only: Option<&str>,
) -> Result<HashMap<String, Vec<Route>>> {
    let rows: Vec<RouteRow> = sqlx::query_as(
        "SELECT cluster_id, id, service, tcp_addr, sni, sealed_addr, created_unix_ms
         FROM routes WHERE $1 IS NULL OR cluster_id = $1 ORDER BY rowid",
    )
    .bind(only)
    .fetch_all(connection)
    .await?;
    let mut routes: HashMap<String, Vec<Route>> = HashMap::new();
    for (cluster, id, service, tcp, sni, addr, created) in rows {
        let damaged = |why: String| RowError::Damaged(format!("route {id} of {cluster}: {why}"));
        let service = ServiceName::new(&service).map_err(|why| damaged(why.to_string()))?;
        let kind = match (tcp, sni) {
            (Some(addr), _) => RouteKind::Tcp { addr: addr.into() },
            (None, Some(sni)) => RouteKind::Sealed {
                sni: SniPattern::new(&sni).map_err(|why| damaged(why.to_string()))?,
                addr: addr.map(Into::into),
            },
            (None, None) => return Err(damaged("listens nowhere".to_owned())),
        };
        let created_unix_ms = unsigned(created)?;
        routes.entry(cluster).or_default().push(Route {
            id,
            route: update::Route { service, kind },
            created_unix_ms,
        });
    }
    Ok(routes)
}

/// By cluster, in the order they were written.
pub(super) async fn load_personal(
    connection: &mut Connection,
    only: Option<&str>,
) -> Result<HashMap<String, Vec<Personal>>> {
    let rows: Vec<PersonalRow> = sqlx::query_as(
        "SELECT cluster_id, id, digest, principal, services, created_unix_ms, not_after_unix_ms
         FROM personal_tokens WHERE $1 IS NULL OR cluster_id = $1 ORDER BY rowid",
    )
    .bind(only)
    .fetch_all(connection)
    .await?;
    let mut personal: HashMap<String, Vec<Personal>> = HashMap::new();
    for (cluster, id, digest, principal, services, created, not_after) in rows {
        let services: Vec<String> = serde_json::from_str(&services)
            .map_err(|why| RowError::Damaged(format!("personal token {id}: {why}")))?;
        personal.entry(cluster).or_default().push(Personal {
            token: PersonalToken {
                digest: digest_of(digest)?,
                id: id.into(),
                principal: principal.into(),
                not_after_unix_ms: not_after.map(unsigned).transpose()?,
                services: services.into_iter().map(Into::into).collect(),
            },
            created_unix_ms: unsigned(created)?,
        });
    }
    Ok(personal)
}

/// Writes both for a cluster that has none in the store.
pub(super) async fn put(connection: &mut Connection, cluster: &Cluster) -> Result<()> {
    for route in &cluster.routes {
        put_route(connection, &cluster.id, route).await?;
    }
    for personal in &cluster.personal {
        put_personal(connection, &cluster.id, personal).await?;
    }
    Ok(())
}

async fn put_route(connection: &mut Connection, cluster: &ClusterId, route: &Route) -> Result<()> {
    let (tcp, sni, addr) = match &route.route.kind {
        RouteKind::Tcp { addr } => (Some(&**addr), None, None),
        RouteKind::Sealed { sni, addr } => (None, Some(sni.as_str()), addr.as_deref()),
    };
    sqlx::query(
        "INSERT INTO routes (cluster_id, id, service, tcp_addr, sni, sealed_addr, created_unix_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(cluster.as_str())
    .bind(&route.id)
    .bind(route.route.service.as_str())
    .bind(tcp)
    .bind(sni)
    .bind(addr)
    .bind(signed(route.created_unix_ms)?)
    .execute(connection)
    .await?;
    Ok(())
}

async fn put_personal(
    connection: &mut Connection,
    cluster: &ClusterId,
    personal: &Personal,
) -> Result<()> {
    let token = &personal.token;
    let services: Vec<&str> = token.services.iter().map(|service| &**service).collect();
    let services =
        serde_json::to_string(&services).map_err(|why| RowError::Damaged(why.to_string()))?;
    sqlx::query(
        "INSERT INTO personal_tokens (cluster_id, id, digest, principal, services,
                                      created_unix_ms, not_after_unix_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(cluster.as_str())
    .bind(&*token.id)
    .bind(&token.digest.0[..])
    .bind(&*token.principal)
    .bind(services)
    .bind(signed(personal.created_unix_ms)?)
    .bind(token.not_after_unix_ms.map(signed).transpose()?)
    .execute(connection)
    .await?;
    Ok(())
}
