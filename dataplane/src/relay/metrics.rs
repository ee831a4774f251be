//! The instruments of a relay.

use culvert_engine::{Backend, Engine, EngineMetrics};
use culvert_proto::close::CloseReason;
use culvert_telemetry::metrics::{
    IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Metrics as Registry,
};

use super::desk::Count;
use crate::engine::gauge;

/// All of them.
pub struct Metrics {
    /// Renders them.
    pub registry: Registry,
    /// `culvert_pair_introducing`
    pub introducing: IntGauge,
    /// `culvert_pair_matches_total`
    pub matches: IntCounter,
    /// The relay engine's.
    pub engine: EngineMetrics,
    /// `culvert_pair_copied_bytes_total`
    pub copied_bytes: IntCounter,
    /// `culvert_draining`
    pub draining: IntGauge,
    /// `culvert_config_last_reload_successful`
    pub reload_ok: IntGauge,
    waiting: IntGauge,
    held_back: IntGauge,
    pairs: IntGauge,
    refused: IntCounterVec,
    closed: IntCounterVec,
    accept_paused: IntCounter,
    io_backend: IntGaugeVec,
}

/// All of them as a table.
pub fn describe() -> String {
    let metrics = Metrics::new();
    #[cfg(feature = "hub")]
    drop(super::watch::Eye::new(
        &metrics.registry,
        super::watch::absent(),
    ));
    metrics.registry.describe()
}

impl Metrics {
    /// Registers them.
    pub fn new() -> Self {
        let r = Registry::new();
        let panics = r.counter_vec("culvert_panics_total", "Panics caught, by task.", &["task"]);
        Self {
            introducing: r.gauge(
                "culvert_pair_introducing",
                "Connections that have not shown a preface yet.",
            ),
            matches: r.counter("culvert_pair_matches_total", "Pairs that were joined."),
            engine: EngineMetrics::new(&r, &panics),
            copied_bytes: r.counter(
                "culvert_pair_copied_bytes_total",
                "Bytes of pairs whose outer TLS is kept; all others are the engine's.",
            ),
            draining: r.gauge("culvert_draining", "1 from the order to drain on."),
            reload_ok: r.gauge(
                "culvert_config_last_reload_successful",
                "1 when the last reload of certificates worked.",
            ),
            waiting: r.gauge("culvert_pair_waiting", "Sides that wait for the other."),
            held_back: r.gauge(
                "culvert_pair_held_back",
                "Sides that have met and wait for a place: fewer are free than one of their sources has pairs.",
            ),
            pairs: r.gauge("culvert_pair_live", "Pairs now."),
            refused: r.counter_vec(
                "culvert_pair_refused_total",
                "Connections that were not joined: rate_limit, bad_proof, bad_preface, open_refused, full (no place to wait), draining, waited_too_long, tls, alpn, silent, gone or evicted.",
                &["reason"],
            ),
            closed: r.counter_vec(
                "culvert_pair_closed_total",
                "Pairs that ended, by close reason.",
                &["reason"],
            ),
            accept_paused: r.counter(
                "culvert_accept_paused_seconds_total",
                "Seconds in which no connection was accepted for want of descriptors.",
            ),
            io_backend: r.gauge_vec(
                "culvert_io_backend",
                "What the engine runs on, and why.",
                &["backend", "reason"],
            ),
            registry: r,
        }
    }

    /// Somebody is not joined.
    pub fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// A pair ended.
    pub fn closed(&self, reason: CloseReason) {
        self.closed.with_label_values(&[reason.as_str()]).inc();
    }

    /// What the engine runs on.
    pub fn runs_on(&self, backend: Backend) {
        let labels = [backend.name(), backend.reason];
        self.io_backend.with_label_values(&labels).set(1);
    }

    /// Fills what is only known at scrape time.
    pub fn refresh(&self, engine: &Engine, count: &Count) {
        self.waiting.set(gauge(count.waiting as u64));
        self.held_back.set(gauge(count.held_back as u64));
        self.pairs.set(gauge(count.pairs as u64));
        self.engine.follow(engine.gauges());
        let paused = culvert_net::listen::accept_paused().as_secs();
        let counted = self.accept_paused.get();
        self.accept_paused.inc_by(paused.saturating_sub(counted));
    }
}
