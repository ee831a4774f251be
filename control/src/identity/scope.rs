//! What a caller of the API may do.

use std::collections::BTreeSet;

use culvert_identity::Tier;

/// One right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Reads everything but other people's audit rows.
    Read,
    /// Reads every audit row.
    Audit,
    /// Changes clusters and their routes.
    Clusters,
    /// Mints, rotates and takes tokens of clusters and people.
    Tokens,
    /// Everything, API tokens included.
    Admin,
}

impl Scope {
    /// Every one.
    pub const ALL: [Self; 5] = [
        Self::Read,
        Self::Audit,
        Self::Clusters,
        Self::Tokens,
        Self::Admin,
    ];

    /// The word in API and store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Audit => "audit",
            Self::Clusters => "clusters",
            Self::Tokens => "tokens",
            Self::Admin => "admin",
        }
    }

    /// The right of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == word)
    }

    /// Whether `held` has this right, or all of them.
    #[must_use]
    pub fn is_in(self, held: &BTreeSet<Self>) -> bool {
        held.contains(&self) || held.contains(&Self::Admin)
    }

    /// What people of a tier may do with control itself.
    #[must_use]
    pub fn of_tier(tier: Option<Tier>) -> BTreeSet<Self> {
        match tier {
            None => BTreeSet::new(),
            Some(Tier::Admin) => [Self::Admin].into(),
            Some(_) => [Self::Read].into(),
        }
    }

    /// What a request wants; nothing where everybody who is known may ask. A route that nobody
    /// thought of wants everything.
    #[must_use]
    pub fn wanted(method: &str, route: &str) -> Option<Self> {
        let path = route.strip_prefix("/api").unwrap_or(route);
        let path = path.strip_prefix("/v1").unwrap_or(path);
        let first = path.trim_start_matches('/').split('/').next();
        let is_read = matches!(method, "GET" | "HEAD");
        Some(match (first.unwrap_or_default(), is_read) {
            // Who one is, and signing out.
            ("auth" | "whoami", _) => return None,
            ("api-tokens" | "connect" | "enrol", _) => Self::Admin,
            // Who may not see every row sees their own.
            ("audit", _) => Self::Read,
            (_, true) => Self::Read,
            ("personal-tokens", false) => Self::Tokens,
            ("clusters", false) => {
                let below = path.split('/').nth(3).unwrap_or_default();
                match below {
                    "tokens" | "rotate-token" | "revoke" => Self::Tokens,
                    _ => Self::Clusters,
                }
            }
            _ => Self::Admin,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_wants_its_right() {
        for (method, route, scope) in [
            ("GET", "/api/v1/clusters", Scope::Read),
            ("GET", "/api/v1/clusters/{id}/tokens", Scope::Read),
            ("GET", "/api/license", Scope::Read),
            ("GET", "/api/v1/audit", Scope::Read),
            ("POST", "/api/v1/clusters", Scope::Clusters),
            ("PATCH", "/api/clusters/{id}", Scope::Clusters),
            ("DELETE", "/api/v1/clusters/{id}", Scope::Clusters),
            ("POST", "/api/v1/clusters/{id}/routes", Scope::Clusters),
            ("POST", "/api/v1/clusters/{id}/tokens", Scope::Tokens),
            (
                "DELETE",
                "/api/v1/clusters/{id}/tokens/{token_id}",
                Scope::Tokens,
            ),
            ("POST", "/api/clusters/{id}/rotate-token", Scope::Tokens),
            ("POST", "/api/v1/clusters/{id}/revoke", Scope::Tokens),
            ("POST", "/api/v1/personal-tokens", Scope::Tokens),
            ("GET", "/api/v1/api-tokens", Scope::Admin),
            ("POST", "/api/v1/api-tokens", Scope::Admin),
            ("GET", "/api/v1/connect/requests", Scope::Admin),
            (
                "POST",
                "/api/connect/requests/{request_id}/approve",
                Scope::Admin,
            ),
            ("POST", "/enrol/{request_id}", Scope::Admin),
            ("POST", "/api/v1/later", Scope::Admin),
            ("DELETE", "/", Scope::Admin),
        ] {
            assert_eq!(
                Scope::wanted(method, route),
                Some(scope),
                "{method} {route}"
            );
        }
        for (method, route) in [
            ("GET", "/api/whoami"),
            ("GET", "/api/v1/auth/whoami"),
            ("POST", "/api/auth/logout/everywhere"),
        ] {
            assert_eq!(Scope::wanted(method, route), None, "{method} {route}");
        }
        let held = [Scope::Read, Scope::Tokens].into();
        assert!(Scope::Tokens.is_in(&held) && !Scope::Clusters.is_in(&held));
        assert!(Scope::Clusters.is_in(&Scope::of_tier(Some(Tier::Admin))));
        assert!(!Scope::Clusters.is_in(&Scope::of_tier(Some(Tier::Maintain))));
        assert!(!Scope::Read.is_in(&Scope::of_tier(None)));
    }
}
