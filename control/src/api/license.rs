//! `/license`: the licence's standing (L-17), and what the vendor would be told.

use std::hash::Hash;

use axum::Json as Answer;
use axum::extract::State;
use culvert_licence::{Payload, Source};
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::ProblemBody;
use super::times::rfc3339;
use super::{Context, Shared};
use crate::license::{Licensing, View};

/// The licence's standing.
#[derive(Serialize, ToSchema)]
pub(super) struct LicenseView {
    /// valid, expired, invalid or unlicensed. Nothing is ever blocked.
    state: &'static str,
    /// Null when there is nothing to say.
    banner: Option<BannerView>,
    /// Administrators are warned at each login.
    login_warning: bool,
    mode: String,
    /// What a believed licence says; null without one.
    license: Option<TermsView>,
    /// Why a licence is not believed.
    reason: Option<String>,
    heartbeat: HeartbeatView,
}

/// The one banner to show.
#[derive(Serialize, ToSchema)]
#[schema(as = Banner)]
pub(super) struct BannerView {
    /// yellow or red.
    pub(super) level: &'static str,
    /// Plain text.
    pub(super) text: String,
}

/// What a believed licence says.
#[derive(Serialize, ToSchema)]
#[schema(as = LicenseTerms)]
pub(super) struct TermsView {
    id: String,
    org: String,
    tier: Option<String>,
    max_clusters: Option<u64>,
    expires_at: String,
    /// setting, file or stored.
    source: Option<&'static str>,
}

/// How the heartbeat fares.
#[derive(Serialize, ToSchema)]
#[schema(as = Heartbeat)]
pub(super) struct HeartbeatView {
    enabled: bool,
    /// silent, yellow, red or long_red.
    rung: &'static str,
    days_without_success: u64,
    last_success_at: Option<String>,
    last_error: Option<String>,
    /// The version that the vendor published last.
    latest_version: Option<String>,
    /// What the vendor says, plain text.
    message: Option<String>,
}

/// All that the vendor is told.
#[derive(Serialize, ToSchema)]
pub(super) struct HeartbeatPayload {
    license_id: String,
    hub_version: String,
    hub_mode: String,
    org_name: String,
    cluster_count: u64,
    audit_event_count_24h: u64,
    started_at: String,
}

impl From<Payload> for HeartbeatPayload {
    fn from(payload: Payload) -> Self {
        let Payload {
            license_id,
            hub_version,
            hub_mode,
            org_name,
            cluster_count,
            audit_event_count_24h,
            started_at,
        } = payload;
        Self {
            license_id,
            hub_version,
            hub_mode,
            org_name,
            cluster_count,
            audit_event_count_24h,
            started_at,
        }
    }
}

pub(super) fn banner(view: &View) -> Option<BannerView> {
    view.banner.as_ref().map(|banner| BannerView {
        level: banner.level.as_str(),
        text: banner.text.clone(),
    })
}

/// The licence's standing, and how the heartbeat fares.
#[utoipa::path(get, operation_id = "show_license", path = "/license", tag = "license",
    responses((status = OK, body = LicenseView), (status = "default", body = ProblemBody)))]
pub(super) async fn show(State(context): State<Shared>) -> Answer<LicenseView> {
    Answer(LicenseView::now(&context))
}

impl LicenseView {
    pub(super) fn now(context: &Context) -> Self {
        let licensing = &context.licensing;
        let view = licensing.view(context.hub.now_ms());
        let boot = licensing.boot();
        Self {
            state: view.standing.as_str(),
            banner: banner(&view),
            login_warning: view.login_warning,
            mode: licensing.mode().to_owned(),
            license: boot.license.as_ref().map(|license| TermsView {
                id: license.id.clone(),
                org: license.org.clone(),
                tier: license.tier.clone(),
                max_clusters: license.max_clusters,
                expires_at: license.expiry(),
                source: boot.source.map(Source::as_str),
            }),
            reason: boot.why.map(|why| why.to_string()),
            heartbeat: HeartbeatView {
                enabled: licensing.is_heartbeat_enabled(),
                rung: view.rung.as_str(),
                days_without_success: view.days,
                last_success_at: view.last_success_unix_ms.map(rfc3339),
                last_error: view.last_error,
                latest_version: view.latest_version,
                message: view.message,
            },
        }
    }

    /// What is news when it changes.
    pub(super) fn standing(&self) -> impl Hash + '_ {
        let banner = self.banner.as_ref().map(|it| (it.level, &it.text));
        let beat = &self.heartbeat;
        let heard = (&beat.last_error, &beat.latest_version, &beat.message);
        (self.state, banner, &self.reason, beat.rung, heard)
    }
}

/// The exact fields that the next heartbeat would send; nothing else ever goes out (C-36).
#[utoipa::path(get, operation_id = "show_heartbeat", path = "/license/heartbeat", tag = "license",
    responses((status = OK, body = HeartbeatPayload), (status = "default", body = ProblemBody)))]
pub(super) async fn heartbeat(State(context): State<Shared>) -> Answer<HeartbeatPayload> {
    let beat = Licensing::beat(&context.hub).await;
    let payload = context.licensing.payload(&beat, context.hub.now_ms());
    Answer(payload.into())
}
