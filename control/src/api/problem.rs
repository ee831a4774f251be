//! Errors of the API: `application/problem+json` with a stable code.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use culvert_proto::id::ClusterId;
use serde::Serialize;
use utoipa::ToSchema;

use super::kind::{self, Kind};
use super::page;
use crate::enrol::CaRefused;
use crate::hub::HubError;
use crate::registry::Refused;

/// One error. The answer's body is written once its request id is known.
#[derive(Clone, Debug)]
pub struct Problem(Box<Facts>);

#[derive(Clone, Debug)]
struct Facts {
    kind: &'static Kind,
    seen: String,
    fix: String,
    fields: Vec<Field>,
    cluster: Option<String>,
    retry_after_s: Option<u64>,
    is_page: bool,
}

/// A field of the request that breaks its rule.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Field {
    /// Its name, with dots into nested values.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

/// An error as the API sends it (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemBody {
    r#type: String,
    pub(super) title: String,
    status: u16,
    /// A stable word.
    pub(super) code: String,
    /// What was observed.
    pub(super) seen: String,
    /// Which side caused it: client, control or identity provider.
    pub(super) side: String,
    /// The one thing to do.
    pub(super) fix: String,
    pub(super) request_id: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<Field>,
}

impl Problem {
    /// An error of this kind: what was observed, and the one thing to do.
    pub(super) fn new(
        kind: &'static Kind,
        seen: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self(Box::new(Facts {
            kind,
            seen: seen.into(),
            fix: fix.into(),
            fields: Vec::new(),
            cluster: None,
            retry_after_s: None,
            is_page: false,
        }))
    }

    /// Fields that break their rule.
    pub(super) fn fields(fields: Vec<Field>) -> Self {
        let all: Vec<_> = fields
            .iter()
            .map(|it| format!("{}: {}", it.field, it.why))
            .collect();
        let fix = "correct the fields named; see /api/v1/openapi.json";
        let mut problem = Self::new(&kind::BAD_FIELD, all.join("; "), fix);
        problem.0.fields = fields;
        problem
    }

    /// One field that breaks its rule.
    pub(super) fn field(field: &str, why: impl Into<String>) -> Self {
        Self::fields(vec![Field {
            field: field.to_owned(),
            why: why.into(),
        }])
    }

    /// The stable word.
    pub(super) fn code(&self) -> &'static str {
        self.0.kind.code
    }

    /// Says which cluster it is about, where the path does not.
    pub(super) fn about(mut self, cluster: &ClusterId) -> Self {
        self.0.cluster = Some(cluster.to_string());
        self
    }

    /// Says when to try again.
    pub(super) fn retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after_s = Some(seconds);
        self
    }

    /// Shows a page to people, whose browsers say that they want one.
    pub(super) fn for_people(mut self, headers: &HeaderMap) -> Self {
        self.0.is_page = page::is_wanted(headers);
        self
    }

    /// The cluster it is about.
    pub(super) fn cluster(&self) -> Option<&str> {
        self.0.cluster.as_deref()
    }

    /// Whether it is not the caller's doing.
    pub(super) fn is_of_server(&self) -> bool {
        self.0.kind.status.is_server_error()
    }

    /// What was observed.
    pub(super) fn seen(&self) -> &str {
        &self.0.seen
    }

    /// The whole answer.
    pub(super) fn render(&self, request_id: &str) -> Response {
        let kind = self.0.kind;
        let body = ProblemBody {
            r#type: format!("urn:culvert:error:{}", kind.code),
            title: kind.title.to_owned(),
            status: kind.status.as_u16(),
            code: kind.code.to_owned(),
            seen: self.0.seen.clone(),
            side: kind.side.to_owned(),
            fix: self.0.fix.clone(),
            request_id: request_id.to_owned(),
            fields: self.0.fields.clone(),
        };
        let mut response = match self.0.is_page {
            true => page::problem(&body).into_response(),
            false => {
                let body = serde_json::to_vec(&body).unwrap_or_default();
                let json = HeaderValue::from_static("application/problem+json");
                let mut response = Response::new(Body::from(body));
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                response
            }
        };
        *response.status_mut() = kind.status;
        let headers = response.headers_mut();
        match kind.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        if let Some(seconds) = self.0.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.0.kind.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<HubError> for Problem {
    fn from(error: HubError) -> Self {
        let seen = error.to_string();
        match &error {
            HubError::NoCluster(_) => {
                Self::new(&kind::UNKNOWN_CLUSTER, seen, "culvert cluster list")
            }
            HubError::Exists(id) => {
                let fix = format!("culvert cluster show {id}, or choose another id");
                Self::new(&kind::CLUSTER_EXISTS, seen, fix)
            }
            HubError::TooManyApiTokens => Self::new(
                &kind::TOO_MANY_API_TOKENS,
                seen,
                "revoke some that are unused",
            ),
            HubError::TooManyEnrolTokens => {
                let fix = "wait: each ends within 15 minutes";
                Self::new(&kind::TOO_MANY_BOOTSTRAP_TOKENS, seen, fix)
            }
            HubError::Ca(refused) => Self::of_ca(refused, seen),
            HubError::Certificate(_) => {
                let fix = "see control's log, and ca.crt and ca.key of --agent-ca-dir";
                Self::new(&kind::CA_UNUSABLE, seen, fix)
            }
            HubError::SealedElsewhere(_) => {
                let fix =
                    "give control the signing.key that it had, or that the other processes have";
                Self::new(&kind::CA_UNUSABLE, seen, fix)
            }
            HubError::NoApiToken(_) => {
                Self::new(&kind::UNKNOWN_API_TOKEN, seen, "see GET /api/v1/api-tokens")
            }
            HubError::TooManyConnectRequests => {
                let fix = "decide those that wait (culvert connect ls), or try again later";
                Self::new(&kind::TOO_MANY_CONNECT_REQUESTS, seen, fix).retry_after(60)
            }
            HubError::NoConnectRequest => {
                let fix = "culvert connect ls; the agent may ask anew";
                Self::new(&kind::UNKNOWN_CONNECT_REQUEST, seen, fix)
            }
            HubError::Over(_) => {
                let fix = "let the agent ask anew: culvert-agent connect";
                Self::new(&kind::REQUEST_OVER, seen, fix)
            }
            HubError::Overtaken => Self::new(&kind::OVERTAKEN, seen, "try again"),
            HubError::TooManyClusters => {
                Self::new(&kind::TOO_MANY_CLUSTERS, seen, "remove unused clusters")
            }
            HubError::TooManyDeliveries => {
                let fix = "wait until agents acknowledged some";
                Self::new(&kind::TOO_MANY_DELIVERIES, seen, fix)
            }
            HubError::NobodyToDeliverTo(id) => {
                let fix = format!(
                    "connect a culvert/1 agent, or rotate without delivery: culvert token rotate {id}"
                );
                Self::new(&kind::NOBODY_TO_DELIVER_TO, seen, fix)
            }
            HubError::OwnedByFile { path, .. } => {
                let fix = format!("change {path}; it is read again at once");
                Self::new(&kind::OWNED_BY_FILE, seen, fix)
            }
            HubError::File(_) => {
                Self::new(&kind::BAD_FILE, seen, "mend it; it is read again at once")
            }
            HubError::Refused(refused) => Self::of_refused(refused, seen),
            HubError::Store(why) => {
                let fix = "do what the text says, then try again; data planes work on unaffected";
                Self::new(kind::of_store(why.code()), seen, fix)
            }
        }
    }
}

impl Problem {
    fn of_ca(refused: &CaRefused, seen: String) -> Self {
        let (kind, fix) = match refused {
            CaRefused::Staged(_) => (&kind::CA_STAGED, "culvert ca promote, or retire it"),
            CaRefused::NothingStaged => (&kind::NO_CA_STAGED, "culvert ca stage"),
            CaRefused::TooMany => (&kind::TOO_MANY_CAS, "culvert ca list; retire the oldest"),
            CaRefused::Unknown(_) => (&kind::UNKNOWN_CA, "culvert ca list"),
            CaRefused::Signing(_) => (
                &kind::CA_SIGNS,
                "stage and promote another first: culvert ca stage",
            ),
        };
        Self::new(kind, seen, fix)
    }

    fn of_refused(refused: &Refused, seen: String) -> Self {
        let list = |id| format!("culvert token list {id}");
        match refused {
            Refused::Spec(problems) => {
                let field = |(field, why): &(String, String)| Field {
                    field: field.clone(),
                    why: why.clone(),
                };
                Self::fields(problems.iter().map(field).collect())
            }
            Refused::TooManyTokens(id) => {
                let fix = format!("remove one ({}), or rotate with overlap 0", list(id));
                Self::new(&kind::TOO_MANY_TOKENS, seen, fix)
            }
            Refused::NoToken(id, _) => Self::new(&kind::UNKNOWN_TOKEN, seen, list(id)),
            Refused::NotPending(id) => Self::new(&kind::NOT_PENDING, seen, list(id)),
            Refused::TooManyRoutes(id) => {
                let fix = format!("remove one: culvert route list {id}");
                Self::new(&kind::TOO_MANY_ROUTES, seen, fix)
            }
            Refused::RouteTaken { cluster, route, .. } => {
                let fix = format!(
                    "choose another address or name, or free it: culvert route remove {cluster} {route}"
                );
                Self::new(&kind::ROUTE_TAKEN, seen, fix)
            }
            Refused::NoRoute(id, _) => {
                let fix = format!("culvert route list {id}");
                Self::new(&kind::UNKNOWN_ROUTE, seen, fix)
            }
            Refused::TooManyPersonalTokens(_) => {
                let fix = "revoke one: culvert personal-token list";
                Self::new(&kind::TOO_MANY_PERSONAL_TOKENS, seen, fix)
            }
            Refused::NoPersonalToken(_) => {
                let fix = "culvert personal-token list";
                Self::new(&kind::UNKNOWN_PERSONAL_TOKEN, seen, fix)
            }
        }
    }
}

const DOCUMENT: &str = "see /api/v1/openapi.json";

pub(super) async fn no_route(uri: Uri) -> Problem {
    Problem::new(&kind::NO_ROUTE, uri.path(), DOCUMENT)
}

pub(super) async fn no_method(method: Method, uri: Uri) -> Problem {
    let seen = format!("{method} {}", uri.path());
    Problem::new(&kind::NO_METHOD, seen, DOCUMENT)
}
