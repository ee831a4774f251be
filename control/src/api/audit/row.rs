//! A row of the audit log as the API shows it, and as it is printed.

use serde::Serialize;
use utoipa::ToSchema;

use crate::api::times::rfc3339;
use crate::audit::Recorded;

/// One row of the audit log.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct AuditRow {
    id: i64,
    time: String,
    request_id: String,
    /// Method and pattern of the route.
    route: String,
    /// unix, tcp, file, session or personal-token; of an audited request of a machine tunnel.
    transport: String,
    actor: ActorView,
    verb: String,
    /// success, denied (refused by a rule, or by the target with 401 or 403), failure; or
    /// attempted: the request is about to be forwarded, another row says how it ended.
    outcome: String,
    /// Empty where no cluster is known.
    cluster: String,
    resource: ResourceView,
    /// The error's code, empty on success; of an audited request the close reason.
    reason: String,
    /// Of an audited request, the same in all of its rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    /// What the client was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<i64>,
    /// Bytes of the body towards the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_to_service: Option<i64>,
    /// Bytes of the body towards the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_to_client: Option<i64>,
    /// From the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<i64>,
}

/// Who did it.
#[derive(Serialize, ToSchema)]
#[schema(as = Actor)]
pub(in crate::api) struct ActorView {
    /// admin-token, uid:<number>, registry-file, or unknown: no valid credential was shown.
    sub: String,
    email: String,
    groups: Vec<String>,
}

/// What it was done to.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditedResource)]
pub(in crate::api) struct ResourceView {
    group: String,
    version: String,
    resource: String,
    namespace: String,
    /// Id of the token, route or cluster, empty for all tokens of the cluster; of an audited
    /// request the name of the object, or the path where that is no Kubernetes API.
    name: String,
}

impl From<Recorded> for AuditRow {
    fn from(row: Recorded) -> Self {
        Self {
            id: row.seq,
            time: rfc3339(u64::try_from(row.time_unix_ms).unwrap_or_default()),
            request_id: row.request_id,
            route: row.route,
            transport: row.transport,
            actor: ActorView {
                sub: row.actor_sub,
                email: row.actor_email,
                groups: serde_json::from_str(&row.actor_groups).unwrap_or_default(),
            },
            verb: row.verb,
            outcome: row.outcome,
            cluster: row.cluster,
            resource: ResourceView {
                group: row.resource_group,
                version: row.resource_version,
                resource: row.resource,
                namespace: row.namespace,
                name: row.name,
            },
            reason: row.reason,
            event_id: row.event_id,
            status: row.status,
            bytes_to_service: row.bytes_to_service,
            bytes_to_client: row.bytes_to_client,
            duration_ms: row.duration_ms,
        }
    }
}

/// One line of JSON.
#[must_use]
pub fn line(row: Recorded) -> String {
    serde_json::to_string(&AuditRow::from(row)).unwrap_or_default()
}
