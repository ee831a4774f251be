//! Flows, data channels and the relay engine.

use std::sync::atomic::Ordering;

use culvert_engine::Engine;
use culvert_proto::close::CloseReason;
use culvert_telemetry::metrics::{
    HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Metrics as Registry,
};

use crate::plane::gauge;

/// Bounds of `culvert_flow_open_seconds`: a LAN, a continent, a slow service.
const OPEN_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
];

/// Relayed TCP connections.
pub struct FlowMetrics {
    /// `culvert_flows{mode}`
    pub live: IntGaugeVec,
    /// `culvert_flows_total{mode,datapath}`
    pub begun: IntCounterVec,
    /// `culvert_flows_refused_total{mode,reason}`
    pub refused: IntCounterVec,
    /// `culvert_flow_fallbacks_total{reason}`
    pub fallbacks: IntCounterVec,
    /// `culvert_flow_open_seconds`
    pub open_seconds: HistogramVec,
    /// `culvert_route_listeners{state}`
    pub listeners: IntGaugeVec,
}

/// Data channels.
pub struct ChannelMetrics {
    /// `culvert_channels_parked{form}`
    pub parked: IntGaugeVec,
    /// `culvert_channels_opened_total{form}`
    pub opened: IntCounterVec,
    /// `culvert_channels_failed_total{reason}`
    pub failed: IntCounterVec,
}

/// The relay engine.
pub struct EngineMetrics {
    pairs: IntGauge,
    pipes: IntGauge,
    pipes_exhausted: IntCounter,
    rest_bytes: IntGauge,
    spun: IntCounter,
    bytes: IntCounter,
    spliced: IntCounter,
    refused: IntCounterVec,
}

impl FlowMetrics {
    /// Registers them.
    pub fn new(r: &Registry) -> Self {
        Self {
            live: r.gauge_vec(
                "culvert_flows",
                "Relayed TCP connections by mode: tcp, sealed, forward.",
                &["mode"],
            ),
            begun: r.counter_vec(
                "culvert_flows_total",
                "Relayed TCP connections whose service was connected; datapath is splice (two plain sockets), copy (a data channel with TLS, or a client with TLS) or stream (no data channel).",
                &["mode", "datapath"],
            ),
            refused: r.counter_vec(
                "culvert_flows_refused_total",
                "Clients that were not joined to a service, by close reason.",
                &["mode", "reason"],
            ),
            fallbacks: r.counter_vec(
                "culvert_flow_fallbacks_total",
                "Flows on a stream of the carrier: no_capability, no_tls, no_ticket or channel_failed.",
                &["reason"],
            ),
            open_seconds: r.histogram_vec(
                "culvert_flow_open_seconds",
                "From a client's connection to its service's.",
                &[],
                OPEN_SECONDS,
            ),
            listeners: r.gauge_vec(
                "culvert_route_listeners",
                "Addresses of routes: bound, or failed and tried again.",
                &["state"],
            ),
        }
    }
}

impl ChannelMetrics {
    /// Registers them.
    pub fn new(r: &Registry) -> Self {
        Self {
            parked: r.gauge_vec(
                "culvert_channels_parked",
                "Data channels that wait for a client, by form: tls or plain.",
                &["form"],
            ),
            opened: r.counter_vec(
                "culvert_channels_opened_total",
                "Data channels that came in with a good ticket.",
                &["form"],
            ),
            failed: r.counter_vec(
                "culvert_channels_failed_total",
                "Data channels that did not come to be or died while they waited: refused here (bad_ticket, stale_epoch, pool_full, form, preface_*), not opened by the agent (a close reason, ticket_expired), or died_parked.",
                &["reason"],
            ),
        }
    }
}

impl EngineMetrics {
    /// Registers them.
    pub fn new(r: &Registry) -> Self {
        Self {
            pairs: r.gauge(
                "culvert_engine_pairs",
                "Pairs of sockets that the engine relays.",
            ),
            pipes: r.gauge(
                "culvert_engine_pipes",
                "Pipes lent to directions that splice.",
            ),
            pipes_exhausted: r.counter(
                "culvert_engine_pipes_exhausted_total",
                "Times a direction copied for want of a pipe.",
            ),
            rest_bytes: r.gauge(
                "culvert_engine_rest_bytes",
                "Bytes read and not sent yet, kept for sinks that took a part.",
            ),
            spun: r.counter(
                "culvert_engine_spun_seconds_total",
                "Seconds of CPU spent waiting for the next small message.",
            ),
            bytes: r.counter(
                "culvert_engine_bytes_total",
                "Bytes delivered by the engine, pairs that live included.",
            ),
            spliced: r.counter(
                "culvert_engine_spliced_bytes_total",
                "Of these, bytes that no copy touched.",
            ),
            refused: r.counter_vec(
                "culvert_engine_refused_total",
                "Pairs refused at a limit, by close reason.",
                &["reason"],
            ),
        }
    }

    /// A limit was reached.
    pub fn refused(&self, reason: CloseReason) {
        self.refused.with_label_values(&[reason.as_str()]).inc();
    }

    /// Bytes that were delivered since the last call, and those of them spliced.
    pub fn moved(&self, bytes: u64, spliced: u64) {
        self.bytes.inc_by(bytes);
        self.spliced.inc_by(spliced);
    }

    /// Fills what is only known at scrape time.
    pub fn refresh(&self, engine: &Engine) {
        let (mut pairs, mut pipes, mut rest) = (0, 0, 0);
        let (mut exhausted, mut spun_us) = (0, 0);
        for thread in engine.gauges() {
            pairs += thread.pairs.load(Ordering::Relaxed);
            pipes += thread.pipes.load(Ordering::Relaxed);
            rest += thread.rest_bytes.load(Ordering::Relaxed);
            exhausted += thread.pipes_exhausted.load(Ordering::Relaxed);
            spun_us += thread.spun_us.load(Ordering::Relaxed);
        }
        self.pairs.set(gauge(pairs as u64));
        self.pipes.set(gauge(pipes as u64));
        self.rest_bytes.set(gauge(rest as u64));
        raise(&self.pipes_exhausted, exhausted);
        raise(&self.spun, spun_us / 1_000_000);
    }
}

fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}
