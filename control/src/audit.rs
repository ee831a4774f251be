//! Who did what: rows of the audit log (P-19). Closed sets are types, so that a
//! row with another verb or outcome cannot be written.

use std::time::Duration;

use culvert_proto::id::ClusterId;

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$what:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$what])* $variant,)* }

        impl $name {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word in rows, filters and metric labels.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

words! {
    /// What was done or tried.
    Verb {
        /// A token was minted beside the others.
        TokenMint = "token_mint",
        /// A token was minted in place of the others.
        TokenRotate = "token_rotate",
        /// One token, or every token of a cluster, was taken.
        TokenRevoke = "token_revoke",
        /// A cluster was registered.
        ClusterCreate = "cluster_create",
        /// What an operator may change about a cluster was changed.
        ClusterUpdate = "cluster_update",
        /// A cluster was removed.
        ClusterDelete = "cluster_delete",
        /// A way to a service was made.
        RouteCreate = "route_create",
        /// A way to a service was taken.
        RouteDelete = "route_delete",
        /// A person's token was minted; a row for each cluster that it reaches.
        PersonalTokenMint = "personal_token_mint",
        /// A person's token was taken; rows as above.
        PersonalTokenRevoke = "personal_token_revoke",
        /// A machine's token was minted.
        ApiTokenMint = "api_token_mint",
        /// A machine's token was taken.
        ApiTokenRevoke = "api_token_revoke",
        /// The administrator signed in with the password that needs nobody else.
        BreakGlassLogin = "break_glass_login",
        /// Somebody signed in at an identity provider, or came back from it in vain.
        Login = "login",
        /// Somebody ended all of their sessions.
        LogoutEverywhere = "logout_everywhere",
        /// An agent without a credential was let in or refused, or changed a bootstrap token for a
        /// certificate, or tried to.
        AgentRegister = "agent_register",
        /// A CA of agents was staged, promoted or retired.
        CaRotate = "ca_rotate",
        /// The license server renewed the licence.
        LicenseChange = "license_change",
    }
}

words! {
    /// How it ended (P-19.1).
    Outcome {
        /// Done.
        Success = "success",
        /// Refused by a rule.
        Denied = "denied",
        /// It could not be done.
        Failure = "failure",
    }
}

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// `admin-token`, `uid:1000`, `registry-file`, `license-server`, `unknown`.
    pub sub: String,
    /// Empty where there is none.
    pub email: String,
    /// Groups of the actor.
    pub groups: Vec<String>,
}

/// What made it happen: the part of a row that is known before anything is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Who.
    pub actor: Actor,
    /// The request's id.
    pub request_id: String,
    /// Method and pattern of the route, for example `POST /api/clusters`.
    pub route: String,
    /// How it came in: `unix`, `tcp`, `file`, `https`.
    pub transport: &'static str,
}

/// A row to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub time_unix_ms: u64,
    /// What made it happen.
    pub cause: Cause,
    /// What was done or tried.
    pub verb: Verb,
    /// How it ended.
    pub outcome: Outcome,
    /// Empty where no cluster is known.
    pub cluster: String,
    /// Id of the token, route or cluster; empty for all tokens of the cluster.
    pub name: String,
    /// The error's code; empty on success.
    pub reason: String,
}

/// A row as it was recorded. Words are texts: a later version may know more of them.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
#[expect(missing_docs, reason = "the names of P-19.2")]
pub struct Recorded {
    pub seq: i64,
    pub time_unix_ms: i64,
    pub request_id: String,
    pub route: String,
    pub transport: String,
    pub actor_sub: String,
    pub actor_email: String,
    pub actor_groups: String,
    pub verb: String,
    pub outcome: String,
    pub cluster: String,
    pub resource_group: String,
    pub resource_version: String,
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub reason: String,
    /// What follows is absent from rows of what control decided.
    pub event_id: Option<String>,
    pub phase: Option<i64>,
    pub status: Option<i64>,
    pub bytes_to_service: Option<i64>,
    pub bytes_to_client: Option<i64>,
    pub duration_ms: Option<i64>,
}

/// In place of an outcome, in the row of a request that is about to be forwarded.
pub const ATTEMPTED: &str = "attempted";

/// Which rows are asked for; what is absent does not matter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// `sub` or `email` of the actor.
    pub actor: Option<String>,
    /// The verb.
    pub verb: Option<String>,
    /// The outcome.
    pub outcome: Option<String>,
    /// The cluster.
    pub cluster: Option<String>,
    /// Namespace of the resource.
    pub namespace: Option<String>,
    /// Name of the resource.
    pub name: Option<String>,
    /// The request's id.
    pub request_id: Option<String>,
    /// Not before, milliseconds since 1970.
    pub from_unix_ms: Option<u64>,
    /// Before, milliseconds since 1970.
    pub to_unix_ms: Option<u64>,
    /// Rows at most.
    pub limit: u32,
    /// Rows to leave out, from the newest.
    pub offset: u64,
    /// Only rows with a lower number.
    pub before: Option<i64>,
}

/// How long rows are kept (P-19.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Age in milliseconds; `None` = no cap.
    pub age_ms: Option<u64>,
    /// Size of the store in bytes above which the oldest rows go; `None` = no cap.
    pub bytes: Option<u64>,
    /// Time between two prunings.
    pub every: Duration,
}

impl Verb {
    /// What kind of thing it is done to.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::TokenMint | Self::TokenRotate | Self::TokenRevoke => "tokens",
            Self::ClusterCreate | Self::ClusterUpdate | Self::ClusterDelete => "clusters",
            Self::RouteCreate | Self::RouteDelete => "routes",
            Self::PersonalTokenMint | Self::PersonalTokenRevoke => "personal_tokens",
            Self::ApiTokenMint | Self::ApiTokenRevoke => "api_tokens",
            Self::BreakGlassLogin | Self::Login | Self::LogoutEverywhere => "sessions",
            Self::AgentRegister => "agents",
            Self::CaRotate => "agent_cas",
            Self::LicenseChange => "license",
        }
    }
}

impl Cause {
    /// The row of a change that is made now; `name` as in [`Entry::name`].
    #[must_use]
    pub fn did(&self, verb: Verb, cluster: &ClusterId, name: &str, now_ms: u64) -> Entry {
        Entry {
            time_unix_ms: now_ms,
            cause: self.clone(),
            verb,
            outcome: Outcome::Success,
            cluster: cluster.to_string(),
            name: name.to_owned(),
            reason: String::new(),
        }
    }
}
