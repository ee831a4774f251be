//! `/agents/tokens`, `/agents/register` and `/agent-cas`: agents that show a certificate (P-27).

use std::sync::Arc;

use axum::Json as Answer;
use axum::body::to_bytes;
use axum::extract::{Extension, Path, Request, State};
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_enrol::{Request as Csr, certificates, validity};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::{self, nobody};
use super::auth::address;
use super::body::{BODY_BYTES_MAX, Json, cluster_id};
use super::problem::ProblemBody;
use super::times::rfc3339;
use super::{Problem, Shared, kind};
use crate::audit::Cause;
use crate::enrol::{AgentCa, in_order};
use crate::hub::RegisterError;

/// Whose agent gets a certificate.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBootstrap {
    /// The cluster's id.
    cluster: String,
}

/// A bootstrap token: good once, for fifteen minutes, for an agent of this cluster.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bootstrap {
    /// Shown this once.
    token: String,
    cluster: String,
    expires_at: String,
}

/// What an agent sends; `csr` is PKCS#10, DER, in base64.
#[derive(Deserialize, ToSchema)]
pub(super) struct Registration {
    token: String,
    cluster: String,
    csr: String,
}

/// An agent's certificate and the CAs that it should trust, PEM.
#[derive(Serialize, ToSchema)]
#[schema(as = Registered)]
#[serde(rename_all = "camelCase")]
pub(super) struct RegisteredView {
    cert: String,
    ca_bundle: String,
    expires_at: String,
}

/// A CA of agents.
#[derive(Serialize, ToSchema)]
#[schema(as = AgentCa)]
pub(super) struct CaView {
    ca_id: String,
    /// staged: trusted, signs nothing yet; signing; trusted: signs no more agents.
    state: &'static str,
    /// PEM.
    certificate: String,
    created_at: String,
    expires_at: String,
    /// End of the last certificate of an agent that it signed; null when it signed none.
    last_certificate_ends_at: Option<String>,
}

/// Every CA of agents, the one that certifies listeners first.
#[derive(Serialize, ToSchema)]
pub(super) struct Cas {
    items: Vec<CaView>,
}

impl CaView {
    fn of(ca: &AgentCa) -> Self {
        let until = validity(&ca.certificate).map_or(0, |it| it.until_unix_s);
        let last = Some(ca.last_unix_s).filter(|last| *last > 0);
        Self {
            ca_id: ca.id.clone(),
            state: ca.state.as_str(),
            certificate: certificates([&ca.certificate[..]]),
            created_at: rfc3339(ca.created_unix_ms),
            expires_at: rfc3339(until * 1000),
            last_certificate_ends_at: last.map(|last| rfc3339(last * 1000)),
        }
    }
}

/// Mints a bootstrap token.
#[utoipa::path(post, operation_id = "mint_bootstrap_token", path = "/agents/tokens", request_body = NewBootstrap,
    tag = "enrolment",
    responses((status = CREATED, body = Bootstrap), (status = "default", body = ProblemBody)))]
pub(super) async fn mint(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Json(body): Json<NewBootstrap>,
) -> Result<(StatusCode, Answer<Bootstrap>), Problem> {
    let id = cluster_id(&body.cluster)?;
    let minted = context.hub.mint_enrol_token(&cause, &id).await;
    let minted = minted.map_err(|why| Problem::from(why).about(&id))?;
    let view = Bootstrap {
        token: minted.text.expose().to_owned(),
        cluster: id.to_string(),
        expires_at: rfc3339(minted.not_after_unix_ms),
    };
    Ok((StatusCode::CREATED, Answer(view)))
}

/// Changes a bootstrap token for a certificate. Open to everybody who has one; what is wrong with
/// a token stands in the log alone.
#[utoipa::path(post, operation_id = "register_agent", path = "/api/agents/register", tag = "enrolment",
    security(()), request_body = Registration,
    responses((status = OK, body = RegisteredView), (status = "default", body = ProblemBody)))]
pub(super) async fn register(
    State(context): State<Shared>,
    request: Request,
) -> Result<Answer<RegisteredView>, Problem> {
    let (hub, now_ms) = (&context.hub, context.hub.now_ms());
    let address = address(request.headers());
    if let Err(wait_s) = hub.registrations.admit(&address, now_ms) {
        let fix = format!("try again in {wait_s} s");
        let seen = format!("from {address}");
        let problem = Problem::new(&kind::TOO_MANY_REGISTRATIONS, seen, fix);
        return Err(problem.retry_after(wait_s));
    }
    let cause = access::cause(&request, nobody(), "tcp");
    let asked = read(request).await?;
    let csr = STANDARD.decode(asked.csr.as_bytes());
    let csr = csr.map_err(|_| bad_csr("csr is not base64"))?;
    let csr = Csr::read(&csr).map_err(|why| bad_csr(why.to_string()))?;
    let registered = hub
        .register(&cause, &asked.token, &asked.cluster, &csr)
        .await;
    match registered {
        Ok(registered) => Ok(Answer(RegisteredView {
            cert: certificates([&registered.signed.der[..]]),
            ca_bundle: registered.ca_bundle,
            expires_at: rfc3339(registered.signed.validity.until_unix_s * 1000),
        })),
        Err(RegisterError::Hub(why)) => Err(why.into()),
        Err(RegisterError::Token(why)) => {
            tracing::warn!(address, %why, "registration of an agent rejected");
            let fix = "make a new join string: culvert agent command CLUSTER --mtls";
            let seen = "a registration with this token for this cluster";
            let problem = Problem::new(&kind::REGISTRATION_REJECTED, seen, fix);
            if context.unknown.admits(now_ms) {
                hub.registration_refused(&cause, &asked.cluster, problem.code())
                    .await;
            }
            Err(problem)
        }
    }
}

async fn read(request: Request) -> Result<Registration, Problem> {
    let body = to_bytes(request.into_body(), BODY_BYTES_MAX).await;
    let body = body.map_err(|why| {
        let fix = format!("send at most {BODY_BYTES_MAX} bytes");
        Problem::new(&kind::BODY_TOO_LARGE, why.to_string(), fix)
    })?;
    serde_json::from_slice(&body).map_err(|why| {
        // Its words may quote the token.
        let seen = format!("line {}, column {}", why.line(), why.column());
        Problem::new(
            &kind::BAD_JSON,
            seen,
            "send token, cluster and csr as texts",
        )
    })
}

fn bad_csr(seen: impl Into<String>) -> Problem {
    let fix = "send PKCS#10 (DER, base64) of an ECDSA P-256 key, signed by it";
    Problem::new(&kind::BAD_CSR, seen, fix)
}

/// The CAs of agents; their keys are never shown.
#[utoipa::path(get, operation_id = "list_agent_cas", path = "/agent-cas", tag = "enrolment",
    responses((status = OK, body = Cas), (status = "default", body = ProblemBody)))]
pub(super) async fn cas(State(context): State<Shared>) -> Result<Answer<Cas>, Problem> {
    let cas = context.hub.agent_cas().await?;
    let items = in_order(&cas).into_iter().map(CaView::of).collect();
    Ok(Answer(Cas { items }))
}

/// Makes a further CA: trusted everywhere, signs nothing yet.
#[utoipa::path(post, operation_id = "stage_agent_ca", path = "/agent-cas", tag = "enrolment",
    responses((status = CREATED, body = CaView), (status = "default", body = ProblemBody)))]
pub(super) async fn stage(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
) -> Result<(StatusCode, Answer<CaView>), Problem> {
    let ca = context.hub.stage_agent_ca(&cause).await?;
    Ok((StatusCode::CREATED, Answer(CaView::of(&ca))))
}

/// Lets the staged CA sign; the one before stays trusted.
#[utoipa::path(post, operation_id = "promote_agent_ca", path = "/agent-cas/promote", tag = "enrolment",
    responses((status = OK, body = CaView), (status = "default", body = ProblemBody)))]
pub(super) async fn promote(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
) -> Result<Answer<CaView>, Problem> {
    let ca = context.hub.promote_agent_ca(&cause).await?;
    Ok(Answer(CaView::of(&ca)))
}

/// Trusts a CA no more; agents that have nothing newer enrol anew.
#[utoipa::path(delete, operation_id = "retire_agent_ca", path = "/agent-cas/{ca_id}", tag = "enrolment",
    params(("ca_id" = String, Path)),
    responses((status = NO_CONTENT), (status = "default", body = ProblemBody)))]
pub(super) async fn retire(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Path(ca_id): Path<String>,
) -> Result<StatusCode, Problem> {
    context.hub.retire_agent_ca(&cause, &ca_id).await?;
    Ok(StatusCode::NO_CONTENT)
}
