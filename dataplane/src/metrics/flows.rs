//! Flows and data channels.

use culvert_telemetry::metrics::{HistogramVec, IntCounterVec, IntGaugeVec, Metrics as Registry};

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
    /// `culvert_stream_open_seconds{cluster}`
    pub stream_open: HistogramVec,
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
    /// `culvert_tickets_total{result}`
    pub tickets: IntCounterVec,
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
            stream_open: r.times_vec(
                "culvert_stream_open_seconds",
                "From an open for a relayed connection, on a stream or a data channel, to the agent's word that its service is connected.",
                &["cluster"],
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
            tickets: r.counter_vec(
                "culvert_tickets_total",
                "Tickets for data channels: redeemed, expired before anybody showed them, or shown and unknown, which those are that were used, forged or too old.",
                &["result"],
            ),
        }
    }
}
