//! A cluster as control keeps it.

mod access;
mod personal;
mod route;

use std::collections::BTreeMap;

use culvert_config::clusters::{host_port_problem, text_problem};
use culvert_proto::id::{ClusterId, Epoch};
use culvert_proto::limits::{ACCESS_GROUPS_MAX, LABELS_MAX, STREAMS_MAX};
use culvert_proto::token::{Digest, TokenEntry};
use culvert_proto::update::{self, ClusterState, TokenHash};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use access::Access;
pub use personal::Personal;
pub use route::{Route, listens};

/// A cluster and its credentials.
#[derive(Clone)]
pub struct Cluster {
    /// What a token belongs to; never changes.
    pub id: ClusterId,
    /// What an operator may change.
    pub spec: Spec,
    /// Sessions below this epoch are dead.
    pub epoch_floor: u64,
    /// Live tokens, oldest first.
    pub tokens: Vec<Token>,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Milliseconds since 1970.
    pub updated_unix_ms: u64,
    /// When an agent was last seen connected, milliseconds since 1970.
    pub last_connected_unix_ms: Option<u64>,
    /// The registry file made it, and takes it away.
    pub from_file: bool,
    /// Ways to its services beside HTTP, oldest first.
    pub routes: Vec<Route>,
    /// Whose tokens reach its services, oldest first.
    pub personal: Vec<Personal>,
}

/// One token, by its digest.
#[derive(Clone)]
pub struct Token {
    /// The part of the token that may be shown.
    pub id: String,
    /// SHA-256 of the text.
    pub digest: Digest,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// End of its life; `None` = no end.
    pub not_after_unix_ms: Option<u64>,
    /// When a session with it was last reported.
    pub last_used_unix_ms: Option<u64>,
    /// Waits for delivery through the tunnel; then the older tokens live this long.
    pub pending_overlap_ms: Option<u64>,
}

/// What an operator may change about a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Spec {
    /// Name for people; the id when empty.
    pub name: String,
    /// Whether agents are let in.
    pub enabled: bool,
    /// What a second agent does.
    pub policy: Policy,
    /// What speaks behind the agent.
    pub target_kind: TargetKind,
    /// `host:port` that the agents are expected to serve; whatever they serve when absent.
    pub target_addr: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Streams of one session at once, 1 to 16,384.
    pub streams_max: u32,
    /// Requests in flight at once; 0 = unlimited.
    pub requests_max: u32,
    /// Requests per second; 0 = unlimited.
    pub rate_per_second: u32,
    /// Whether clients may impersonate users towards this cluster.
    pub allow_impersonation: bool,
    /// Which people may enter, and as whom.
    pub access: Access,
    /// Whether requests of machines are audited too.
    pub audit_tunnel: bool,
}

/// What may be changed; what is absent stays.
#[derive(Clone, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = ClusterPatch)]
pub struct Patch {
    /// Name for people.
    pub name: Option<String>,
    /// Whether agents are let in.
    pub enabled: Option<bool>,
    /// What a second agent does.
    pub policy: Option<Policy>,
    /// What speaks behind the agent.
    pub target_kind: Option<TargetKind>,
    /// An empty text removes it.
    pub target_addr: Option<String>,
    /// Free labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Streams of one session at once.
    pub streams_max: Option<u32>,
    /// Requests in flight at once.
    pub requests_max: Option<u32>,
    /// Requests per second.
    pub rate_per_second: Option<u32>,
    /// Whether clients may impersonate users.
    pub allow_impersonation: Option<bool>,
    /// Which people may enter, and as whom; given whole.
    pub access: Option<Access>,
    /// Whether requests of machines are audited too.
    pub audit_tunnel: Option<bool>,
}

/// What a second agent of a cluster does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Shares the load.
    #[default]
    Spread,
    /// Takes over.
    Replace,
    /// Is refused.
    Refuse,
}

/// What speaks at the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    /// Any HTTP service.
    #[default]
    Http,
    /// A Kubernetes API server.
    Kube,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            name: String::new(),
            enabled: true,
            policy: Policy::default(),
            target_kind: TargetKind::default(),
            target_addr: None,
            labels: BTreeMap::new(),
            streams_max: 1024,
            requests_max: 0,
            rate_per_second: 0,
            allow_impersonation: false,
            access: Access::default(),
            audit_tunnel: false,
        }
    }
}

impl Patch {
    /// Changes `spec` so.
    pub fn apply(self, spec: &mut Spec) {
        fn set<T>(field: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *field = value;
            }
        }
        set(&mut spec.name, self.name);
        set(&mut spec.enabled, self.enabled);
        set(&mut spec.policy, self.policy);
        set(&mut spec.target_kind, self.target_kind);
        set(
            &mut spec.target_addr,
            self.target_addr
                .map(|addr| Some(addr).filter(|addr| !addr.is_empty())),
        );
        set(&mut spec.labels, self.labels);
        set(&mut spec.streams_max, self.streams_max);
        set(&mut spec.requests_max, self.requests_max);
        set(&mut spec.rate_per_second, self.rate_per_second);
        set(&mut spec.allow_impersonation, self.allow_impersonation);
        set(&mut spec.access, self.access);
        set(&mut spec.audit_tunnel, self.audit_tunnel);
    }
}

impl Spec {
    /// Everything wrong with it, as `(field, sentence)`.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut say = |field: &str, why: String| problems.push((field.to_owned(), why));
        if let Some(why) = text_problem(&self.name) {
            say("name", why);
        }
        if !(1..=STREAMS_MAX).contains(&self.streams_max) {
            say(
                "streams_max",
                format!("is {}; 1 to {STREAMS_MAX} are allowed", self.streams_max),
            );
        }
        if self.labels.len() > LABELS_MAX {
            say(
                "labels",
                format!("holds {} labels; at most {LABELS_MAX}", self.labels.len()),
            );
        }
        for (name, value) in self.labels.iter().take(LABELS_MAX) {
            let empty = name.is_empty().then(|| "has no name".to_owned());
            if let Some(why) = empty.or(text_problem(name)).or(text_problem(value)) {
                say(&format!("labels.{}", name.escape_debug()), why);
            }
        }
        if let Some(why) = self.target_addr.as_deref().and_then(host_port_problem) {
            say("target_addr", why);
        }
        if let Some(why) = self.access.problem() {
            say("access", why);
        }
        let counts = [self.access.grants.len(), self.access.allowed_groups.len()];
        if counts.iter().any(|count| *count > ACCESS_GROUPS_MAX) {
            let why = format!("holds over {ACCESS_GROUPS_MAX} grants or allowed groups");
            say("access", why);
        }
        problems
    }
}

impl Cluster {
    /// Its tokens, for an index over those of all clusters.
    pub fn token_entries(&self) -> impl Iterator<Item = TokenEntry> {
        self.tokens.iter().map(|token| TokenEntry {
            digest: token.digest,
            cluster: self.id.clone(),
            token_id: token.id.as_str().into(),
            not_after_unix_ms: token.not_after_unix_ms,
        })
    }

    /// What data planes learn about it. Nothing but the record decides it, so
    /// that one generation has one content, also after a restart of control.
    #[must_use]
    pub fn to_state(&self) -> ClusterState {
        let spec = &self.spec;
        let name = (!spec.name.is_empty()).then(|| spec.name.as_str().into());
        let labels = spec.labels.iter();
        ClusterState {
            id: self.id.clone(),
            enabled: spec.enabled,
            policy: spec.policy.into(),
            tokens: self.tokens.iter().map(TokenHash::from).collect(),
            epoch_floor: Epoch(self.epoch_floor),
            streams_max: spec.streams_max,
            requests_max: spec.requests_max,
            rate_per_second: spec.rate_per_second,
            allow_impersonation: spec.allow_impersonation,
            target: update::Target {
                kind: spec.target_kind.into(),
                addr: spec.target_addr.as_deref().map(Into::into),
            },
            name,
            labels: labels
                .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
                .collect(),
            routes: self.routes.iter().map(|it| it.route.clone()).collect(),
            personal_tokens: self.personal.iter().map(|it| it.token.clone()).collect(),
            access: spec.access.to_state(),
            audit_tunnel: spec.audit_tunnel,
            certificates_from_unix_s: self.certificates_from_unix_s(),
        }
    }

    /// Certificates of agents that were made before are dead: those of a cluster of the same name
    /// before this one, and those before the last revocation.
    #[must_use]
    pub fn certificates_from_unix_s(&self) -> u64 {
        let revoked = match self.epoch_floor {
            0 => 0,
            floor => floor / 1000 + 1,
        };
        revoked.max(self.created_unix_ms / 1000)
    }
}

impl From<&Token> for TokenHash {
    fn from(token: &Token) -> Self {
        Self {
            digest: token.digest,
            id: token.id.as_str().into(),
            not_after_unix_ms: token.not_after_unix_ms,
        }
    }
}

impl From<Policy> for update::Policy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Spread => Self::Spread,
            Policy::Replace => Self::Replace,
            Policy::Refuse => Self::Refuse,
        }
    }
}

impl From<update::Policy> for Policy {
    fn from(policy: update::Policy) -> Self {
        match policy {
            update::Policy::Spread => Self::Spread,
            update::Policy::Replace => Self::Replace,
            update::Policy::Refuse => Self::Refuse,
        }
    }
}

impl From<update::TargetKind> for TargetKind {
    fn from(kind: update::TargetKind) -> Self {
        match kind {
            update::TargetKind::Http => Self::Http,
            update::TargetKind::Kube => Self::Kube,
        }
    }
}

impl From<TargetKind> for update::TargetKind {
    fn from(kind: TargetKind) -> Self {
        match kind {
            TargetKind::Http => Self::Http,
            TargetKind::Kube => Self::Kube,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_right_and_each_wrong_field_is_named() {
        assert_eq!(Spec::default().problems(), []);
        let wrong = Spec {
            name: "a\nb".to_owned(),
            streams_max: 0,
            labels: [(String::new(), "x".to_owned())].into(),
            target_addr: Some("nowhere".to_owned()),
            ..Spec::default()
        };
        let fields: Vec<_> = wrong
            .problems()
            .into_iter()
            .map(|(field, _)| field)
            .collect();
        assert_eq!(fields, ["name", "streams_max", "labels.", "target_addr"]);
    }
}
