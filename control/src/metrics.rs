//! Every metric of control: names, help, labels.

use std::time::Duration;

use culvert_licence::Standing;
use culvert_telemetry::metrics::{
    HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Metrics as Registry, SECONDS,
};

use crate::audit::{Entry, Recorded};

/// The instruments.
pub struct Metrics {
    /// Renders everything.
    pub registry: Registry,
    /// `culvert_subscribers`
    pub subscribers: IntGauge,
    /// `culvert_published_generation`
    pub generation: IntGauge,
    /// `culvert_clusters`
    pub clusters: IntGauge,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    store_seconds: HistogramVec,
    store_errors: IntCounterVec,
    audit_rows: IntCounterVec,
    licence_standing: IntGaugeVec,
    licence_expiry: IntGauge,
    heartbeats: IntCounterVec,
    break_glass: IntCounterVec,
    logins: IntCounterVec,
    idp_requests: IntCounterVec,
}

impl Metrics {
    /// Registers every instrument.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        Self {
            subscribers: registry.gauge("culvert_subscribers", "Data planes subscribed."),
            generation: registry.gauge(
                "culvert_published_generation",
                "Generation of the state published last.",
            ),
            clusters: registry.gauge("culvert_clusters", "Clusters registered."),
            requests: registry.counter_vec(
                "culvert_api_requests_total",
                "Requests of the admin API.",
                &["route", "method", "status"],
            ),
            request_seconds: registry.histogram_vec(
                "culvert_api_request_seconds",
                "Duration of requests of the admin API.",
                &["route"],
                SECONDS,
            ),
            store_seconds: registry.histogram_vec(
                "culvert_store_seconds",
                "Duration of calls of the store.",
                &["operation"],
                SECONDS,
            ),
            store_errors: registry.counter_vec(
                "culvert_store_errors_total",
                "Calls of the store that failed.",
                &["operation"],
            ),
            audit_rows: registry.counter_vec(
                "culvert_audit_rows_total",
                "Rows of the audit log.",
                &["verb", "outcome"],
            ),
            licence_standing: registry.gauge_vec(
                "culvert_licence_standing",
                "1 for the licence's standing, 0 for the others.",
                &["standing"],
            ),
            licence_expiry: registry.gauge(
                "culvert_licence_expiry_timestamp_seconds",
                "End of the licence, seconds since 1970; 0 without one that is believed.",
            ),
            heartbeats: registry.counter_vec(
                "culvert_licence_heartbeats_total",
                "Heartbeats to the license server.",
                &["result"],
            ),
            break_glass: registry.counter_vec(
                "culvert_break_glass_logins_total",
                "Logins with the password that needs no identity provider.",
                &["result"],
            ),
            logins: registry.counter_vec(
                "culvert_logins_total",
                "Sign-ins at OpenID providers, by their end.",
                &["provider", "result"],
            ),
            idp_requests: registry.counter_vec(
                "culvert_idp_requests_total",
                "Requests to OpenID providers.",
                &["provider", "what", "result"],
            ),
            registry,
        }
    }

    /// One request of the API. `route` is a pattern, never a path.
    pub fn request(&self, route: &str, method: &str, status: u16, took: Duration) {
        self.requests
            .with_label_values(&[route, method, &status.to_string()])
            .inc();
        self.request_seconds
            .with_label_values(&[route])
            .observe(took.as_secs_f64());
    }

    /// One row of the audit log.
    pub fn audited(&self, entry: &Entry) {
        self.audit_rows
            .with_label_values(&[entry.verb.as_str(), entry.outcome.as_str()])
            .inc();
    }

    /// One row of a request that a data plane audited.
    pub fn request_audited(&self, row: &Recorded) {
        self.audit_rows
            .with_label_values(&[&row.verb, &row.outcome])
            .inc();
    }

    /// What the licence is.
    pub fn license(&self, standing: Standing, expires_unix_s: Option<u64>) {
        for one in Standing::ALL {
            let is_it = i64::from(one == standing);
            self.licence_standing
                .with_label_values(&[one.as_str()])
                .set(is_it);
        }
        let expiry = i64::try_from(expires_unix_s.unwrap_or_default());
        self.licence_expiry.set(expiry.unwrap_or(i64::MAX));
    }

    /// One break-glass login: `success`, `denied` or `limited`.
    pub fn break_glass(&self, result: &str) {
        self.break_glass.with_label_values(&[result]).inc();
    }

    /// One sign-in: `success`, or the code of the error. `provider` is a configured name, or empty.
    pub fn login(&self, provider: &str, result: &str) {
        self.logins.with_label_values(&[provider, result]).inc();
    }

    /// One request to a provider: `discovery`, `keys`, `token` or `userinfo`.
    pub fn idp_request(&self, provider: &str, what: &str, succeeded: bool) {
        let result = if succeeded { "success" } else { "failure" };
        self.idp_requests
            .with_label_values(&[provider, what, result])
            .inc();
    }

    /// One heartbeat.
    pub fn heartbeat(&self, succeeded: bool) {
        let result = if succeeded { "success" } else { "failure" };
        self.heartbeats.with_label_values(&[result]).inc();
    }

    /// One call of the store.
    pub fn store(&self, operation: &str, succeeded: bool, took: Duration) {
        self.store_seconds
            .with_label_values(&[operation])
            .observe(took.as_secs_f64());
        if !succeeded {
            self.store_errors.with_label_values(&[operation]).inc();
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
