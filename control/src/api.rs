//! The admin API: JSON over a Unix socket, or over TCP on loopback with the
//! admin token. `/api/v1/...` is the own root; the same routes stand under
//! `/api/...` in the shapes of the contract (C-68).

#![allow(
    unused_qualifications,
    reason = "utoipa names parameter types once more in its expansion"
)]

mod access;
mod agents;
mod api_tokens;
mod audit;
mod auth;
mod body;
mod clusters;
mod companion;
mod events;
mod fleet;
mod kind;
mod license;
mod live;
mod page;
mod pages;
mod personal;
mod problem;
mod routes;
mod serve;
mod status;
mod times;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use culvert_proto::token::Digest;
use culvert_telemetry::lifecycle::Shutdown;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::fanout::Fanout;
use crate::hub::Hub;
use crate::identity::SignIn;
use crate::license::Licensing;
use crate::metrics::Metrics;

pub use access::Caller;
pub use audit::{Unknown, line as audit_line};
pub use events::{Events, watch};
pub use kind::reference as errors;
pub use pages::Pages;
pub use personal::PERSONAL_LIFE_SECONDS_DEFAULT;
pub use problem::Problem;
pub use serve::{CONNECTIONS_MAX, serve_tcp, serve_unix};

/// What the handlers know.
pub struct Context {
    /// Decides.
    pub hub: Arc<Hub>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The licence's standing.
    pub licensing: Arc<Licensing>,
    /// The admin token; without one TCP callers get no further than the open routes.
    pub admin: Option<Digest>,
    /// `Host` values that TCP callers may send.
    pub hosts: Vec<String>,
    /// Where people and agents find the hub.
    pub public_url: Option<String>,
    /// Longest life of a person's token, in seconds.
    pub personal_life_seconds: u64,
    /// How people sign in; `None` = nobody does.
    pub sign_in: Option<SignIn>,
    /// Asks the clusters; `None` where no data plane is known.
    pub fanout: Option<Arc<Fanout>>,
    /// What they answered a moment ago.
    pub pages: Pages,
    /// What changed lately.
    pub events: Events,
    /// Audit rows of callers who showed no valid credential.
    pub unknown: Unknown,
}

impl Context {
    /// What the handlers know at least: nobody signs in, and TCP callers get no further than the
    /// open routes.
    #[must_use]
    pub fn new(hub: Arc<Hub>, metrics: Arc<Metrics>, licensing: Arc<Licensing>) -> Self {
        Self {
            hub,
            metrics,
            licensing,
            admin: None,
            hosts: Vec::new(),
            public_url: None,
            personal_life_seconds: PERSONAL_LIFE_SECONDS_DEFAULT,
            sign_in: None,
            fanout: None,
            pages: Pages::default(),
            events: Events::new(1, Shutdown::default()),
            unknown: Unknown::default(),
        }
    }
}

type Shared = Arc<Context>;

#[derive(OpenApi)]
#[openapi(info(
    title = "Culvert admin API",
    description = "Clusters, tokens and the fleet. Errors are application/problem+json."
))]
struct Document;

/// The OpenAPI document of the API.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    documented().1
}

fn documented() -> (Router<Shared>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Document::openapi())
        .nest("/api/v1", admin())
        .split_for_parts()
}

/// Every route.
pub fn router(context: Shared) -> Router {
    let (v1, document) = documented();
    let (plain, _) = OpenApiRouter::new().nest("/api", admin()).split_for_parts();
    let guarded = v1
        .merge(plain)
        .route(
            "/api/v1/openapi.json",
            get(async move || axum::Json(document)),
        )
        .route_layer(from_fn_with_state(context.clone(), audit::refusals))
        .route_layer(from_fn_with_state(context.clone(), access::guarded));
    let open = Router::new()
        .route("/", get(page::show))
        .route("/api/config", get(companion::config))
        .route("/api/auth/config", get(auth::config))
        .route("/api/auth/login", get(auth::start).post(auth::login))
        .route("/api/auth/callback", get(auth::callback))
        .route("/api/auth/oidc/callback", get(auth::callback))
        .route("/api/auth/logout", post(auth::logout))
        .route("/api/auth/loggedout", get(auth::logged_out))
        .route("/api/agent/status", get(companion::agent_status));
    guarded
        .merge(open)
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .layer(from_fn_with_state(context.clone(), access::known_host))
        .layer(from_fn_with_state(context.clone(), access::traced))
        .with_state(context)
}

fn admin() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(clusters::list, clusters::create))
        .routes(routes!(clusters::show, clusters::update, clusters::remove))
        .routes(routes!(clusters::revoke))
        .routes(routes!(tokens::list, tokens::mint))
        .routes(routes!(tokens::remove))
        .routes(routes!(tokens::rotate))
        .routes(routes!(routes::list, routes::create))
        .routes(routes!(routes::remove))
        .routes(routes!(routes::all))
        .routes(routes!(personal::list, personal::mint))
        .routes(routes!(personal::revoke))
        .routes(routes!(agents::list))
        .routes(routes!(fleet::show))
        .routes(routes!(events::stream))
        .routes(routes!(events::poll))
        .routes(routes!(fleet::ask))
        .routes(routes!(audit::list))
        .routes(routes!(audit::live::stream))
        .routes(routes!(status::dataplanes))
        .routes(routes!(status::show))
        .routes(routes!(license::show))
        .routes(routes!(auth::whoami))
        .routes(routes!(auth::whoami_fully))
        .routes(routes!(auth::everywhere))
        .routes(routes!(api_tokens::list, api_tokens::mint))
        .routes(routes!(api_tokens::revoke))
        .routes(routes!(license::heartbeat))
}
