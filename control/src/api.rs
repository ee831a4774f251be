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
mod connect;
mod document;
mod enrol;
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
use culvert_proto::token::Digest;
use culvert_telemetry::lifecycle::Shutdown;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::fanout::Fanout;
use crate::hub::Hub;
use crate::identity::SignIn;
use crate::license::Licensing;
use crate::metrics::Metrics;

pub use access::Caller;
pub use audit::{Unknown, line as audit_line};
pub use connect::Connects;
pub use document::document;
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
    /// Agents that ask for a token.
    pub connect: Connects,
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
            connect: Connects::default(),
            unknown: Unknown::default(),
        }
    }
}

type Shared = Arc<Context>;

/// Every route.
pub fn router(context: Shared) -> Router {
    let nested = |root, routes| OpenApiRouter::new().nest(root, routes).split_for_parts().0;
    let under = |root| nested(root, admin());
    let guarded = Router::merge(under("/api/v1"), under("/api"))
        .merge(forms().split_for_parts().0)
        .route_layer(from_fn_with_state(context.clone(), audit::refusals))
        .route_layer(from_fn_with_state(context.clone(), access::guarded));
    let asked = |root| nested(root, agents_ask());
    let open = Router::merge(asked("/api/v1"), asked("/api")).merge(open().split_for_parts().0);
    guarded
        .merge(open)
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .layer(from_fn_with_state(context.clone(), access::known_host))
        .layer(from_fn_with_state(context.clone(), access::traced))
        .with_state(context)
}

/// What wants no credential, or another one.
fn open() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(page::show))
        .routes(routes!(companion::config))
        .routes(routes!(auth::config))
        .routes(routes!(auth::start, auth::login))
        .routes(routes!(auth::callback))
        .routes(routes!(auth::callback_of_others))
        .routes(routes!(auth::logout))
        .routes(routes!(auth::logged_out))
        .routes(routes!(companion::agent_status))
        .routes(routes!(connect::page::show))
        .routes(routes!(enrol::register))
}

/// What agents ask that have no credential yet, under both roots.
fn agents_ask() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(connect::ask))
        .routes(routes!(connect::poll))
}

/// Forms of pages, which want a session.
fn forms() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(connect::page::submit))
}

/// What stands under both roots, and wants a credential.
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
        .routes(routes!(enrol::mint))
        .routes(routes!(enrol::cas, enrol::stage))
        .routes(routes!(enrol::promote))
        .routes(routes!(enrol::retire))
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
        .routes(routes!(connect::list))
        .routes(routes!(connect::approve))
        .routes(routes!(connect::deny))
        .routes(routes!(license::heartbeat))
        .routes(routes!(document::show))
}
