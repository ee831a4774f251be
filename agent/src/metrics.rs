//! Every metric of the agent: names, help, labels (docs/metrics.md is made from this).

mod pair;

use std::sync::Arc;
use std::time::Duration;

use culvert_engine::legs::{Elsewhere, LegMetrics, Named};
use culvert_engine::{Backend, Engine, EngineMetrics};
use culvert_proto::channel::Form;
use culvert_proto::close::{CloseReason, Side};
use culvert_telemetry::metrics::family::{Family, Kind};
use culvert_telemetry::metrics::{
    ClusterLabels, CounterVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Metrics, SECONDS,
};
use parking_lot::Mutex;

pub use pair::{PairForm, PairMetrics, PairStep};

/// Dials remembered for the percentiles in STATS.
const DIALS_MAX: usize = 128;
/// Label value of the connection between agent and service.
const UPSTREAM: &str = "upstream";

/// The agent's instruments.
pub struct AgentMetrics {
    /// The registry they are rendered from.
    pub registry: Metrics,
    /// 1 while a session is established.
    pub connected: IntGauge,
    /// End of the agent's certificate.
    pub certificate_expiry: IntGauge,
    /// Dial attempts after the first.
    pub reconnects: IntCounter,
    /// Requests sent to the target.
    pub upstream_requests: IntCounter,
    /// Requests the target did not answer: dial, TLS, time, I/O.
    pub upstream_errors: IntCounter,
    /// Streams open now.
    pub streams: IntGauge,
    /// Idle connections to the target.
    pub pool_idle: IntGauge,
    streams_opened: IntCounterVec,
    streams_refused: IntCounterVec,
    connect_seconds: HistogramVec,
    connect_failures: IntCounterVec,
    session_seconds: HistogramVec,
    session_rtt: HistogramVec,
    mux_stall: CounterVec,
    sessions_ended: IntCounterVec,
    handshake_failures: IntCounterVec,
    flows: IntGaugeVec,
    flows_ended: IntCounterVec,
    channels: IntGaugeVec,
    channels_opened: IntCounterVec,
    channels_failed: IntCounterVec,
    io_backend: IntGaugeVec,
    engine: EngineMetrics,
    pair: PairMetrics,
    relay_bytes: IntCounterVec,
    /// What the engine had delivered when it was last looked at.
    delivered: Mutex<[[u64; 2]; 2]>,
    legs: Arc<LegMetrics>,
    named: Arc<Named>,
    cluster: String,
    dials: Mutex<Dials>,
}

/// How the bytes of a flow travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datapath {
    /// On a data channel without TLS of its own, by the engine.
    Splice,
    /// On a data channel inside TLS.
    Copy,
    /// On a stream of the carrier.
    Stream,
}

/// Where a data channel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// It is being opened.
    Dialling,
    /// It waits for a client.
    Warm,
}

/// One of something that is there now, until it is dropped.
pub struct Counted(IntGauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[derive(Default)]
struct Dials {
    micros: Vec<u32>,
    next: usize,
}

impl Datapath {
    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Splice => "splice",
            Self::Copy => "copy",
            Self::Stream => "stream",
        }
    }
}

impl AgentMetrics {
    /// Registers everything. `cluster` is the label; empty when the credential decides.
    #[must_use]
    pub fn new(cluster: &str) -> Self {
        let m = Metrics::new();
        let panics = m.counter_vec("culvert_panics_total", "Panics caught, by task.", &["task"]);
        let gauge = |name, help| -> IntGauge {
            let vec: IntGaugeVec = m.gauge_vec(name, help, &[]);
            vec.with_label_values(&[] as &[&str])
        };
        Self {
            connected: gauge(
                "agent_connected",
                "1 while a session with the hub is established.",
            ),
            certificate_expiry: gauge(
                "agent_certificate_expiry_timestamp_seconds",
                "End of the certificate that the agent shows, seconds since 1970; 0 when it shows none of its own.",
            ),
            reconnects: m.counter(
                "agent_reconnects_total",
                "Dial attempts to the hub after the first.",
            ),
            upstream_requests: m.counter(
                "agent_upstream_requests_total",
                "Requests sent to the target.",
            ),
            upstream_errors: m.counter(
                "agent_upstream_errors_total",
                "Requests that the target did not answer: dial, TLS, time, I/O; not HTTP 5xx.",
            ),
            streams: gauge("culvert_agent_streams", "Streams open now."),
            pool_idle: gauge(
                "culvert_agent_pool_idle_connections",
                "Idle connections to the target.",
            ),
            streams_opened: m.counter_vec(
                "culvert_streams_opened_total",
                "Streams the hub opened.",
                &["cluster"],
            ),
            streams_refused: m.counter_vec(
                "culvert_streams_refused_total",
                "Streams answered with an error of our own.",
                &["reason"],
            ),
            connect_seconds: m.times_vec(
                "culvert_tcp_connect_duration_seconds",
                "Time to a usable connection: name, TCP, TLS.",
                &["cluster", "leg"],
            ),
            connect_failures: m.counter_vec(
                "culvert_tcp_connect_failures_total",
                "Failed dials.",
                &["cluster", "leg", "reason"],
            ),
            session_seconds: m.histogram_vec(
                "culvert_session_duration_seconds",
                "Life of a session with the hub.",
                &[],
                SECONDS,
            ),
            session_rtt: m.times_vec(
                "culvert_session_rtt_seconds",
                "Round trip on the carrier, by our own ping.",
                &["cluster"],
            ),
            mux_stall: m.seconds_vec(
                "culvert_mux_window_stall_seconds_total",
                "Time in which bytes for streams of the carrier waited for the hub's credit or the carrier, added up over streams.",
                &["cluster", "direction"],
            ),
            sessions_ended: m.counter_vec(
                "culvert_agent_sessions_ended_total",
                "Ended sessions.",
                &["reason"],
            ),
            handshake_failures: m.counter_vec(
                "culvert_handshake_failures_total",
                "Attempts to reach the hub that failed.",
                &["stage", "reason"],
            ),
            flows: m.gauge_vec(
                "culvert_flows",
                "Connections to services now, by the way of their bytes.",
                &["datapath"],
            ),
            flows_ended: m.counter_vec(
                "culvert_flows_total",
                "Connections to services that ended, by the way of their bytes: splice (data channel without TLS), copy (data channel inside TLS), stream (on the carrier).",
                &["datapath", "reason"],
            ),
            channels: m.gauge_vec(
                "culvert_data_channels",
                "Data channels that wait for a client (warm) or are being opened (dialling).",
                &["state"],
            ),
            channels_opened: m.counter_vec(
                "culvert_channels_opened_total",
                "Data channels that the hub let in, by form: tls or plain.",
                &["form"],
            ),
            channels_failed: m.counter_vec(
                "culvert_channels_failed_total",
                "Data channels that could not be opened.",
                &["reason"],
            ),
            io_backend: m.gauge_vec(
                "culvert_io_backend",
                "1 for what the engine threads are told of readiness by, and why.",
                &["backend", "reason"],
            ),
            pair: PairMetrics::new(&m),
            engine: EngineMetrics::new(&m, &panics),
            relay_bytes: m.counter_vec(
                "culvert_relay_bytes_total",
                "Bytes of connections to services that were delivered, by the way they moved.",
                &["cluster", "direction", "datapath"],
            ),
            delivered: Mutex::default(),
            legs: LegMetrics::new(&m, Elsewhere::default()),
            named: Named::new(&ClusterLabels::default(), cluster),
            registry: observed(m),
            cluster: cluster.to_owned(),
            dials: Mutex::default(),
        }
    }

    /// A stream came in; it is open until the guard is dropped.
    #[must_use]
    pub fn open_stream(&self) -> Counted {
        self.streams.inc();
        self.streams_opened
            .with_label_values(&[&self.cluster])
            .inc();
        Counted(self.streams.clone())
    }

    /// A stream was answered by us.
    pub fn stream_refused(&self, reason: CloseReason) {
        self.streams_refused
            .with_label_values(&[reason.as_str()])
            .inc();
    }

    /// The target was reached in `took`.
    pub fn dialled(&self, took: Duration) {
        self.connect_seconds
            .with_label_values(&[self.cluster.as_str(), UPSTREAM])
            .observe(took.as_secs_f64());
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let mut dials = self.dials.lock();
        let at = dials.next;
        match dials.micros.get_mut(at) {
            Some(slot) => *slot = micros,
            None => dials.micros.push(micros),
        }
        dials.next = (at + 1) % DIALS_MAX;
    }

    /// The target did not answer, for `reason`.
    pub fn upstream_failed(&self, reason: CloseReason) {
        if reason.side() != Side::Upstream {
            return;
        }
        self.upstream_errors.inc();
        let word = match reason {
            CloseReason::DialRefused => "refused",
            CloseReason::DialTimeout => "timeout",
            CloseReason::DialUnreachable => "unreachable",
            CloseReason::DialName => "dns",
            CloseReason::TargetTls => "other",
            _ => return,
        };
        self.connect_failures
            .with_label_values(&[self.cluster.as_str(), UPSTREAM, word])
            .inc();
    }

    /// A session ended after `lived`.
    pub fn session_ended(&self, lived: Duration, reason: CloseReason) {
        self.session_seconds
            .with_label_values(&[] as &[&str])
            .observe(lived.as_secs_f64());
        self.sessions_ended
            .with_label_values(&[reason.as_str()])
            .inc();
    }

    /// The carrier's round trip.
    pub fn round_trip(&self, rtt: Duration) {
        self.session_rtt
            .with_label_values(&[&self.cluster])
            .observe(rtt.as_secs_f64());
    }

    /// Bytes waited so long for the hub's credit or the carrier.
    pub fn mux_stalled(&self, waited: Duration) {
        self.mux_stall
            .with_label_values(&[self.cluster.as_str(), "to_client"])
            .inc_by(waited.as_secs_f64());
    }

    /// The hub could not be reached.
    pub fn handshake_failed(&self, stage: &str, reason: CloseReason) {
        self.handshake_failures
            .with_label_values(&[stage, reason.as_str()])
            .inc();
    }

    /// A flow runs until the guard is dropped.
    #[must_use]
    pub fn open_flow(&self, datapath: Datapath) -> Counted {
        let now = self.flows.with_label_values(&[datapath.as_str()]);
        now.inc();
        Counted(now)
    }

    /// A flow ended for `reason`.
    pub fn flow_ended(&self, datapath: Datapath, reason: CloseReason) {
        self.flows_ended
            .with_label_values(&[datapath.as_str(), reason.as_str()])
            .inc();
    }

    /// A data channel is in `state` until the guard is dropped.
    #[must_use]
    pub fn channel(&self, state: ChannelState) -> Counted {
        let word = match state {
            ChannelState::Dialling => "dialling",
            ChannelState::Warm => "warm",
        };
        let now = self.channels.with_label_values(&[word]);
        now.inc();
        Counted(now)
    }

    /// Data channels that wait for a client, of all sessions.
    #[must_use]
    pub fn channels_warm(&self) -> Option<u32> {
        let warm = self.channels.with_label_values(&["warm"]).get();
        u32::try_from(warm).ok()
    }

    /// The hub let a data channel in.
    pub fn channel_opened(&self, form: Form) {
        self.channels_opened
            .with_label_values(&[form.as_str()])
            .inc();
    }

    /// A data channel could not be opened; `reason` is one word of a fixed set.
    pub fn channel_failed(&self, reason: &'static str) {
        self.channels_failed.with_label_values(&[reason]).inc();
    }

    /// The engine's threads run on this.
    pub fn runs_on(&self, backend: Backend) {
        let labels = [backend.name(), backend.reason];
        self.io_backend.with_label_values(&labels).set(1);
    }

    /// Takes over what the engine's threads count.
    pub fn follow(&self, engine: &Engine) {
        self.engine.follow(engine.gauges());
        let now = self.engine.delivered();
        let before = std::mem::replace(&mut *self.delivered.lock(), now);
        for (direction, (now, before)) in DIRECTIONS.iter().zip(now.iter().zip(before)) {
            for (datapath, (now, before)) in ["copy", "splice"].iter().zip(now.iter().zip(before)) {
                self.bytes(direction, datapath)
                    .inc_by(now.saturating_sub(before));
            }
        }
    }

    /// Bytes were delivered beside the engine: inside TLS, or on a stream.
    pub fn relayed(&self, to_service: u64, to_client: u64) {
        for (direction, bytes) in DIRECTIONS.iter().zip([to_service, to_client]) {
            self.bytes(direction, "copy").inc_by(bytes);
        }
    }

    fn bytes(&self, direction: &str, datapath: &str) -> IntCounter {
        self.relay_bytes
            .with_label_values(&[self.cluster.as_str(), direction, datapath])
    }

    /// Connections by leg.
    #[must_use]
    pub fn legs(&self) -> &Arc<LegMetrics> {
        &self.legs
    }

    /// The cluster as connections are counted.
    #[must_use]
    pub fn named(&self) -> &Arc<Named> {
        &self.named
    }

    /// The engine's instruments.
    #[must_use]
    pub fn engine(&self) -> &EngineMetrics {
        &self.engine
    }

    /// The instruments of the roles bridge and broker.
    #[must_use]
    pub fn pair(&self) -> &PairMetrics {
        &self.pair
    }

    /// Median and 99th percentile in µs of the last dials of the target.
    #[must_use]
    pub fn dial_percentiles(&self) -> Option<(u32, u32)> {
        let mut micros = self.dials.lock().micros.clone();
        micros.sort_unstable();
        let at = |percent: usize| {
            micros
                .get((micros.len().saturating_sub(1)) * percent / 100)
                .copied()
        };
        Some((at(50)?, at(99)?))
    }
}

const DIRECTIONS: [&str; 2] = ["to_service", "to_client"];

const OBSERVED: &[Family] = &[
    Family {
        name: "culvert_ebpf_tier",
        kind: Kind::Gauge,
        help: "1 for the observer's tier; an agent runs in other people's clusters and loads nothing.",
        labels: &["tier"],
    },
    Family {
        name: "culvert_observer_info",
        kind: Kind::Gauge,
        help: "1 for where figures of TCP connections come from, and why from there.",
        labels: &["source", "tier", "requested", "reason"],
    },
];

/// Says where the figures of connections come from.
fn observed(m: Metrics) -> Metrics {
    m.collect(
        OBSERVED,
        Box::new(|told| {
            if let [tier, info] = told {
                tier.integer(&["tcp_info"], 1);
                info.integer(&["tcp_info", "tcp_info", "off", "not_in_agent"], 1);
            }
        }),
    );
    m
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_moves() {
        let metrics = AgentMetrics::new("prod");
        metrics.connected.set(1);
        metrics.reconnects.inc();
        metrics.upstream_requests.inc();
        metrics.upstream_failed(CloseReason::DialRefused);
        metrics.pool_idle.inc();
        let _open = metrics.open_stream();
        metrics.stream_refused(CloseReason::TooManyStreams);
        metrics.dialled(Duration::from_millis(3));
        metrics.session_ended(Duration::from_secs(3), CloseReason::CarrierLost);
        metrics.round_trip(Duration::from_millis(2));
        metrics.mux_stalled(Duration::from_millis(250));
        metrics.handshake_failed("auth", CloseReason::Unauthenticated);
        let _flow = metrics.open_flow(Datapath::Copy);
        metrics.flow_ended(Datapath::Splice, CloseReason::Finished);
        let _warm = metrics.channel(ChannelState::Warm);
        metrics.channel_opened(Form::Plain);
        metrics.channel_failed("tls");
        let _pair = metrics.pair().stands(PairForm::Raw);
        let _waits = metrics.pair().waits();
        metrics.pair().ended("carrier_lost");
        metrics.pair().failed(PairStep::Introduce);
        metrics.pair().unserved.inc();
        metrics.relayed(7, 9);
        assert_eq!(
            (metrics.pair().standing(), metrics.pair().waiting()),
            (1, 1)
        );
        let text = metrics.registry.render();
        for line in [
            "agent_connected 1",
            "agent_reconnects_total 1",
            "agent_upstream_requests_total 1",
            "agent_upstream_errors_total 1",
            "culvert_agent_streams 1",
            "culvert_agent_pool_idle_connections 1",
            "culvert_streams_opened_total{cluster=\"prod\"} 1",
            "culvert_relay_bytes_total{cluster=\"prod\",datapath=\"copy\",direction=\"to_client\"} 9",
            "culvert_observer_info{reason=\"not_in_agent\",requested=\"off\",source=\"tcp_info\",tier=\"tcp_info\"} 1",
            "culvert_streams_refused_total{reason=\"too_many_streams\"} 1",
            "culvert_mux_window_stall_seconds_total{cluster=\"prod\",direction=\"to_client\"} 0.25",
            "culvert_tcp_connect_duration_seconds_count{cluster=\"prod\",leg=\"upstream\"} 1",
            "culvert_tcp_connect_failures_total{cluster=\"prod\",leg=\"upstream\",reason=\"refused\"} 1",
            "culvert_flows{datapath=\"copy\"} 1",
            "culvert_flows_total{datapath=\"splice\",reason=\"finished\"} 1",
            "culvert_data_channels{state=\"warm\"} 1",
            "culvert_channels_opened_total{form=\"plain\"} 1",
            "culvert_channels_failed_total{reason=\"tls\"} 1",
            "culvert_pairs{form=\"raw\"} 1",
            "culvert_pair_waiting_connections 1",
            "culvert_pairs_total{reason=\"carrier_lost\"} 1",
            "culvert_pair_failures_total{step=\"introduce\"} 1",
            "culvert_pair_unserved_total 1",
            "culvert_session_duration_seconds_count 1",
            "culvert_agent_sessions_ended_total{reason=\"carrier_lost\"} 1",
            "culvert_session_rtt_seconds_count{cluster=\"prod\"} 1",
            "culvert_handshake_failures_total{reason=\"unauthenticated\",stage=\"auth\"} 1",
        ] {
            assert!(
                text.lines().any(|seen| seen == line),
                "{line} not in\n{text}"
            );
        }
    }

    #[test]
    fn percentiles_are_of_the_last_dials() {
        let metrics = AgentMetrics::new("");
        assert_eq!(metrics.dial_percentiles(), None);
        for ms in 0..300 {
            metrics.dialled(Duration::from_millis(ms));
        }
        let (p50, p99) = metrics.dial_percentiles().unwrap();
        assert!((230_000..240_000).contains(&p50), "{p50}");
        assert!(p99 >= 297_000, "{p99}");
    }
}
