//! Every kind of error of the API. A code is never used for something else.

use std::fmt::Write as _;

use axum::http::StatusCode;

/// One kind of error.
#[derive(Debug)]
pub struct Kind {
    /// Of the answer.
    pub status: StatusCode,
    /// The stable word.
    pub code: &'static str,
    /// Which side caused it: client, control or identity provider.
    pub side: &'static str,
    /// What it is, for people.
    pub title: &'static str,
}

macro_rules! kinds {
    ($($name:ident = $status:ident, $code:literal, $side:literal, $title:literal;)*) => {
        $(pub(super) static $name: Kind = Kind {
            status: StatusCode::$status,
            code: $code,
            side: $side,
            title: $title,
        };)*
        /// All of them.
        static KINDS: &[&Kind] = &[$(&$name),*];
    };
}

kinds! {
    BAD_JSON = BAD_REQUEST, "bad_json", "client", "the body is no JSON";
    LOGIN_LOST = BAD_REQUEST, "login_lost", "client", "this browser has no sign-in on its way";
    LOGIN_CODE = BAD_REQUEST, "login_code", "client", "the identity provider does not take the code";
    LOGIN_ISSUER = BAD_REQUEST, "login_issuer", "client",
        "the answer is not of the identity provider that was asked";
    BAD_CSR = BAD_REQUEST, "bad_csr", "client", "the certificate request cannot be read";
    REGISTRATION_REJECTED = UNAUTHORIZED, "registration_rejected", "client",
        "registration rejected";
    UNAUTHENTICATED = UNAUTHORIZED, "unauthenticated", "client", "a token is required";
    BAD_LOGIN = UNAUTHORIZED, "bad_login", "client", "name or password is wrong";
    FORBIDDEN = FORBIDDEN, "forbidden", "client", "the caller has no right to this";
    ORIGIN_REFUSED = FORBIDDEN, "origin_refused", "client",
        "a page of another origin may not do this";
    LOGIN_DENIED = FORBIDDEN, "login_denied", "identity provider",
        "the identity provider did not sign you in";
    BAD_CLAIMS = FORBIDDEN, "bad_claims", "identity provider",
        "what the identity provider says of you cannot be used";
    TOO_MANY_GROUPS = FORBIDDEN, "too_many_groups", "identity provider",
        "you are in more groups than a session holds";
    UNKNOWN_PROVIDER = NOT_FOUND, "unknown_provider", "client", "no such identity provider";
    NO_SIGN_IN = NOT_FOUND, "no_sign_in", "control", "nobody can sign in here";
    NO_ROUTE = NOT_FOUND, "no_route", "client", "no such route";
    UNKNOWN_CLUSTER = NOT_FOUND, "unknown_cluster", "client", "no such cluster";
    UNKNOWN_TOKEN = NOT_FOUND, "unknown_token", "client", "no such token";
    UNKNOWN_ROUTE = NOT_FOUND, "unknown_route", "client", "the cluster has no such route";
    UNKNOWN_API_TOKEN = NOT_FOUND, "unknown_api_token", "client", "no such API token";
    UNKNOWN_PERSONAL_TOKEN = NOT_FOUND, "unknown_personal_token", "client",
        "no such personal token";
    UNKNOWN_CONNECT_REQUEST = NOT_FOUND, "unknown_connect_request", "client",
        "no such request to connect, or not with this secret";
    NO_CONNECT = NOT_FOUND, "no_connect", "control", "agents cannot ask to connect here";
    NO_METHOD = METHOD_NOT_ALLOWED, "no_method", "client", "this route has no such method";
    CLUSTER_EXISTS = CONFLICT, "cluster_exists", "client", "the cluster is registered already";
    TOO_MANY_CLUSTERS = CONFLICT, "too_many_clusters", "client", "the hub is full";
    TOO_MANY_TOKENS = CONFLICT, "too_many_tokens", "client",
        "the cluster has as many live tokens as allowed";
    ROUTE_TAKEN = CONFLICT, "route_taken", "client",
        "another route has the address or the server name";
    TOO_MANY_ROUTES = CONFLICT, "too_many_routes", "client",
        "the cluster has as many routes as allowed";
    TOO_MANY_PERSONAL_TOKENS = CONFLICT, "too_many_personal_tokens", "client",
        "as many personal tokens as allowed reach the cluster";
    TOO_MANY_API_TOKENS = CONFLICT, "too_many_api_tokens", "client",
        "as many API tokens as allowed are live";
    REQUEST_OVER = CONFLICT, "request_over", "client",
        "the request to connect does not wait for a decision";
    TOO_MANY_BOOTSTRAP_TOKENS = CONFLICT, "too_many_bootstrap_tokens", "client",
        "as many bootstrap tokens as allowed are live";
    CA_STAGED = CONFLICT, "ca_staged", "client", "an agent CA is staged already";
    NO_CA_STAGED = CONFLICT, "no_ca_staged", "client", "no agent CA is staged";
    TOO_MANY_CAS = CONFLICT, "too_many_cas", "client", "as many agent CAs as allowed are trusted";
    CA_SIGNS = CONFLICT, "ca_signs", "client", "the agent CA signs";
    UNKNOWN_CA = NOT_FOUND, "unknown_ca", "client", "no such agent CA";
    NOT_PENDING = CONFLICT, "not_pending", "client", "no token waits for delivery";
    NOBODY_TO_DELIVER_TO = CONFLICT, "nobody_to_deliver_to", "client",
        "no agent can take the token over its tunnel";
    TOO_MANY_DELIVERIES = CONFLICT, "too_many_deliveries", "client",
        "too many tokens wait for delivery";
    OVERTAKEN = CONFLICT, "overtaken", "control",
        "another control process changed the registry at the same time";
    OWNED_BY_FILE = CONFLICT, "owned_by_file", "client",
        "the registry file says otherwise, and wins";
    BAD_FILE = CONFLICT, "bad_file", "client", "the registry file cannot be used";
    BODY_TOO_LARGE = PAYLOAD_TOO_LARGE, "body_too_large", "client", "the body cannot be read";
    NOT_JSON = UNSUPPORTED_MEDIA_TYPE, "not_json", "client", "the body is not JSON";
    HOST_REFUSED = MISDIRECTED_REQUEST, "host_refused", "client",
        "this is not the host you asked for";
    BAD_FIELD = UNPROCESSABLE_ENTITY, "bad_field", "client", "a field breaks its rule";
    TOO_MANY_REGISTRATIONS = TOO_MANY_REQUESTS, "too_many_registrations", "client",
        "too many registrations were tried";
    TOO_MANY_LOGINS = TOO_MANY_REQUESTS, "too_many_logins", "client",
        "too many logins were tried";
    TOO_MANY_CONNECT_REQUESTS = TOO_MANY_REQUESTS, "too_many_connect_requests", "client",
        "too many agents ask to connect";
    SLOW_DOWN = TOO_MANY_REQUESTS, "slow_down", "client", "the request is asked about too often";
    IDP_ANSWER = BAD_GATEWAY, "idp_answer", "identity provider",
        "the identity provider's answer is not believed";
    IDP_UNREACHABLE = SERVICE_UNAVAILABLE, "idp_unreachable", "identity provider",
        "the identity provider does not answer";
    BUSY = SERVICE_UNAVAILABLE, "busy", "control", "too many sign-ins at once";
    TOO_MANY_STREAMS = TOO_MANY_REQUESTS, "too_many_streams", "client",
        "the caller follows as many streams as allowed";
    CA_UNUSABLE = SERVICE_UNAVAILABLE, "ca_unusable", "control",
        "the agent CA cannot be used; nothing changed";
    SLOW = SERVICE_UNAVAILABLE, "slow", "control", "no answer in time";
    STORE_FULL = SERVICE_UNAVAILABLE, "store_full", "control",
        "the store's disk is full; nothing changed";
    STORE_READ_ONLY = SERVICE_UNAVAILABLE, "store_read_only", "control",
        "the store cannot be written; nothing changed";
    STORE_NO_DIRECTORY = SERVICE_UNAVAILABLE, "store_no_directory", "control",
        "the store's directory is gone; nothing changed";
    STORE_NEWER = SERVICE_UNAVAILABLE, "store_newer", "control",
        "a later version wrote the store; nothing changed";
    STORE_IN_USE = SERVICE_UNAVAILABLE, "store_in_use", "control",
        "another process holds the store; nothing changed";
    STORE_DAMAGED = SERVICE_UNAVAILABLE, "store_damaged", "control",
        "the store is damaged; nothing changed";
    STORE_UNREACHABLE = SERVICE_UNAVAILABLE, "store_unreachable", "control",
        "the store's server cannot be reached; nothing changed";
    STORE_TAKEN = SERVICE_UNAVAILABLE, "store_taken", "control",
        "the database holds another hub; nothing changed";
    STORE_SLOW = SERVICE_UNAVAILABLE, "store_slow", "control",
        "the store does not answer; the change may or may not be made";
    STORE_ERROR = SERVICE_UNAVAILABLE, "store_error", "control",
        "the store cannot be used; nothing changed";
}

/// The kind of an error of the store, by its code.
pub(super) fn of_store(code: &str) -> &'static Kind {
    let found = KINDS.iter().find(|kind| kind.code == code);
    found.copied().unwrap_or(&STORE_ERROR)
}

/// All kinds as a Markdown table.
#[must_use]
pub fn reference() -> String {
    let mut text = "| code | status | side | what |\n|---|---|---|---|\n".to_owned();
    for Kind {
        status,
        code,
        side,
        title,
    } in KINDS
    {
        let _ = writeln!(
            text,
            "| `{code}` | {} | {side} | {title} |",
            status.as_u16()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    #[test]
    fn codes_are_unique_and_those_of_the_store_are_among_them() {
        let mut codes: Vec<_> = KINDS.iter().map(|kind| kind.code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), KINDS.len());
        let path: Box<str> = Box::default();
        for error in [
            StoreError::Full { path: path.clone() },
            StoreError::NoDirectory { path: path.clone() },
            StoreError::InUse { path: path.clone() },
            StoreError::Unreachable {
                path: path.clone(),
                why: String::new(),
            },
            StoreError::Taken {
                path: path.clone(),
                why: String::new(),
            },
            StoreError::Slow { path },
        ] {
            assert_eq!(of_store(error.code()).code, error.code());
        }
    }
}
