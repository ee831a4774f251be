//! Errors of the API: `application/problem+json` with a stable code.

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use culvert_proto::id::ClusterId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::hub::HubError;
use crate::registry::Refused;

/// One error. The answer's body is written once its request id is known.
#[derive(Clone, Debug)]
pub struct Problem(Box<Facts>);

#[derive(Clone, Debug)]
struct Facts {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    side: &'static str,
    seen: String,
    fix: String,
    fields: Vec<Field>,
    cluster: Option<String>,
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
    title: String,
    status: u16,
    /// A stable word.
    code: String,
    /// What was observed.
    seen: String,
    /// Which side caused it: client or control.
    side: String,
    /// The one thing to do.
    fix: String,
    request_id: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<Field>,
}

impl Problem {
    /// An error that the caller caused.
    pub(super) fn client(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        seen: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self(Box::new(Facts {
            status,
            code,
            title,
            side: "client",
            seen: seen.into(),
            fix: fix.into(),
            fields: Vec::new(),
            cluster: None,
        }))
    }

    /// An error of our own.
    pub(super) fn control(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        seen: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let mut problem = Self::client(status, code, title, seen, fix);
        problem.0.side = "control";
        problem
    }

    /// Fields that break their rule.
    pub(super) fn fields(fields: Vec<Field>) -> Self {
        let all: Vec<_> = fields
            .iter()
            .map(|it| format!("{}: {}", it.field, it.why))
            .collect();
        let fix = "correct the fields named; see /api/v1/openapi.json";
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let title = "a field breaks its rule";
        let mut problem = Self::client(status, "bad_field", title, all.join("; "), fix);
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
        self.0.code
    }

    /// Says which cluster it is about, where the path does not.
    pub(super) fn about(mut self, cluster: &ClusterId) -> Self {
        self.0.cluster = Some(cluster.to_string());
        self
    }

    /// The cluster it is about.
    pub(super) fn cluster(&self) -> Option<&str> {
        self.0.cluster.as_deref()
    }

    /// What was observed.
    pub(super) fn seen(&self) -> &str {
        &self.0.seen
    }

    /// The whole answer.
    pub(super) fn render(&self, request_id: &str) -> Response {
        let body = ProblemBody {
            r#type: format!("docs/errors/{}.md", self.0.code),
            title: self.0.title.to_owned(),
            status: self.0.status.as_u16(),
            code: self.0.code.to_owned(),
            seen: self.0.seen.clone(),
            side: self.0.side.to_owned(),
            fix: self.0.fix.clone(),
            request_id: request_id.to_owned(),
            fields: self.0.fields.clone(),
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.0.status;
        let json = HeaderValue::from_static("application/problem+json");
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, json);
        match self.0.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.0.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<HubError> for Problem {
    fn from(error: HubError) -> Self {
        let seen = error.to_string();
        let conflict = |code, title, fix: String| {
            Self::client(StatusCode::CONFLICT, code, title, seen.clone(), fix)
        };
        match &error {
            HubError::NoCluster(_) => Self::client(
                StatusCode::NOT_FOUND,
                "unknown_cluster",
                "no such cluster",
                seen,
                "culvert cluster list",
            ),
            HubError::Exists(id) => conflict(
                "cluster_exists",
                "the cluster is registered already",
                format!("culvert cluster show {id}, or choose another id"),
            ),
            HubError::TooManyClusters => conflict(
                "too_many_clusters",
                "the hub is full",
                "remove unused clusters".into(),
            ),
            HubError::TooManyDeliveries => conflict(
                "too_many_deliveries",
                "too many tokens wait for delivery",
                "wait until agents acknowledged some".into(),
            ),
            HubError::NobodyToDeliverTo(id) => conflict(
                "nobody_to_deliver_to",
                "no agent can take the token over its tunnel",
                format!(
                    "connect a culvert/1 agent, or rotate without delivery: culvert token rotate {id}"
                ),
            ),
            HubError::OwnedByFile { path, .. } => conflict(
                "owned_by_file",
                "the registry file says otherwise, and wins",
                format!("change {path}; it is read again at once"),
            ),
            HubError::File(_) => conflict(
                "bad_file",
                "the registry file cannot be used",
                "mend it; it is read again at once".into(),
            ),
            HubError::Refused(refused) => Self::of_refused(refused, seen),
            HubError::Store(why) => Self::control(
                StatusCode::SERVICE_UNAVAILABLE,
                why.code(),
                "the change cannot be recorded; nothing changed",
                seen,
                "do what the text says, then try again; data planes work on unaffected",
            ),
        }
    }
}

impl Problem {
    fn of_refused(refused: &Refused, seen: String) -> Self {
        match refused {
            Refused::Spec(problems) => {
                let field = |(field, why): &(String, String)| Field {
                    field: field.clone(),
                    why: why.clone(),
                };
                Self::fields(problems.iter().map(field).collect())
            }
            Refused::TooManyTokens(id) => Self::client(
                StatusCode::CONFLICT,
                "too_many_tokens",
                "the cluster has as many live tokens as allowed",
                seen,
                format!("remove one (culvert token list {id}), or rotate with overlap 0"),
            ),
            Refused::NoToken(id, _) => Self::client(
                StatusCode::NOT_FOUND,
                "unknown_token",
                "no such token",
                seen,
                format!("culvert token list {id}"),
            ),
            Refused::NotPending(id) => Self::client(
                StatusCode::CONFLICT,
                "not_pending",
                "no token waits for delivery",
                seen,
                format!("culvert token list {id}"),
            ),
        }
    }
}

pub(super) async fn no_route(uri: Uri) -> Problem {
    let fix = "see /api/v1/openapi.json";
    Problem::client(
        StatusCode::NOT_FOUND,
        "no_route",
        "no such route",
        uri.path(),
        fix,
    )
}

pub(super) async fn no_method(method: Method, uri: Uri) -> Problem {
    let seen = format!("{method} {}", uri.path());
    let (status, fix) = (StatusCode::METHOD_NOT_ALLOWED, "see /api/v1/openapi.json");
    Problem::client(
        status,
        "no_method",
        "this route has no such method",
        seen,
        fix,
    )
}
