//! Every metric of the data plane: names, help, labels.

mod audit;
mod flows;

use std::sync::{Arc, OnceLock};

use http::Method;
use parking_lot::RwLock;

use culvert_telemetry::metrics::{
    ClusterLabels, Counter, CounterVec, Histogram, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Metrics as Registry,
};

use culvert_engine::legs::{Leg, LegBytes};
use culvert_engine::{Backend, Engine, EngineMetrics};
use culvert_observe::{Observer, Reason};

use crate::config::MetricsConfig;
use crate::observe::{Seen, Sight};

pub use audit::AuditMetrics;
pub use culvert_telemetry::metrics::UNROUTED;
pub use flows::{ChannelMetrics, FlowMetrics};

/// Bounds of `proxy_request_duration_seconds`, from the contract.
const REQUEST_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Labels of clusters that are none: unrouted, pairs, overflow, the self-test.
const LABELS_FIXED: usize = 4;
/// Methods that get a label of their own.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];

/// The instruments.
pub struct Metrics {
    /// Renders everything.
    pub registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    active: IntGaugeVec,
    /// Names of clusters in labels.
    pub labels: Arc<ClusterLabels>,
    unrouted: OnceLock<Arc<ClusterMetrics>>,
    /// What is known of connections.
    pub sight: Arc<Sight>,
    /// The audit spool.
    pub audit: AuditMetrics,
    /// `agents_connected`
    pub agents: IntGauge,
    /// `proxy_rate_limited_total`
    pub rate_limited: IntCounter,
    /// `auth_failures_total{endpoint}`
    pub auth_failures: IntCounterVec,
    /// `culvert_agent_sessions{cluster,carrier}`
    agent_sessions: IntGaugeVec,
    /// `culvert_session_duration_seconds`
    pub session_seconds: HistogramVec,
    /// `culvert_session_replacements_total{outcome}`
    pub replacements: IntCounterVec,
    /// `culvert_sessions_dead_total{cause}`
    pub sessions_dead: IntCounterVec,
    /// `culvert_handshake_failures_total{stage,reason}`
    pub handshake_failures: IntCounterVec,
    /// `culvert_handshakes_waiting`
    pub handshakes_waiting: IntGauge,
    /// `culvert_accept_paused_seconds_total`, filled at scrape
    accept_paused: IntCounter,
    streams: IntGaugeVec,
    streams_opened: IntCounterVec,
    /// `culvert_streams_refused_total{reason}`
    pub streams_refused: IntCounterVec,
    relay_bytes: IntCounterVec,
    relay_stall: CounterVec,
    mux_stall: CounterVec,
    /// Relayed TCP connections
    pub flows: FlowMetrics,
    /// Data channels
    pub channels: ChannelMetrics,
    /// The relay engine
    pub engine: EngineMetrics,
    /// `culvert_relays_closed_total{reason}`
    pub relays_closed: IntCounterVec,
    io_backend: IntGaugeVec,
    /// `culvert_memory_budget_bytes`
    pub memory_budget: IntGauge,
    /// `culvert_memory_used_bytes{pool}`
    pub memory_used: IntGaugeVec,
    /// `culvert_snapshot_generation`
    pub snapshot_generation: IntGauge,
    /// `culvert_snapshot_age_seconds`
    pub snapshot_age: IntGauge,
    /// `culvert_snapshot_source_info{source}`
    pub snapshot_source: IntGaugeVec,
    /// `culvert_control_connected`
    pub control_connected: IntGauge,
    /// `culvert_draining`
    pub draining: IntGauge,
    /// `culvert_panics_total{task}`
    pub panics: IntCounterVec,
    /// `culvert_config_last_reload_successful`
    pub reload_ok: IntGauge,
    /// `culvert_config_last_reload_timestamp_seconds`
    pub reload_at: IntGauge,
}

/// The instruments of one cluster, looked up once.
pub struct ClusterMetrics {
    label: Box<str>,
    requests: IntCounterVec,
    by_outcome: RwLock<Vec<((u8, u16), IntCounter)>>,
    /// Duration of requests.
    pub seconds: Histogram,
    /// Requests in flight.
    pub active: IntGauge,
    /// Streams open.
    pub streams: IntGauge,
    /// Streams opened so far.
    pub streams_opened: IntCounter,
    /// Body bytes towards the service.
    pub bytes_to_service: IntCounter,
    /// Body bytes towards the client.
    pub bytes_to_client: IntCounter,
    /// Bytes towards the service that the engine moved.
    pub spliced_to_service: IntCounter,
    /// Bytes towards the client that the engine moved.
    pub spliced_to_client: IntCounter,
    /// Seconds in which bytes waited for room, towards the service and the client.
    pub stalled: [Counter; 2],
    /// Bytes of the legs of flows, where the kernel does not count them.
    pub legs: Option<LegBytes>,
    /// The cluster as connections are counted and tagged.
    pub seen: Seen,
}

/// Outcomes of one cluster kept at hand; rarer ones are looked up each time.
const OUTCOMES_MAX: usize = 32;

impl Default for Metrics {
    fn default() -> Self {
        Self::new(
            Observer::absent(Reason::Disabled),
            &MetricsConfig::default(),
        )
    }
}

impl Metrics {
    /// Registers everything; `observer` tells what it knows.
    pub fn new(observer: Observer, config: &MetricsConfig) -> Self {
        let r = Registry::new();
        let own = config.clusters_max.saturating_sub(LABELS_FIXED);
        let labels = ClusterLabels::new(own, config.histograms.clone());
        let labels = Arc::new(labels);
        let panics = r.counter_vec("culvert_panics_total", "Panics caught, by task.", &["task"]);
        let metrics = Self {
            requests: r.counter_vec(
                "proxy_requests_total",
                "Requests to /tunnel/; status and code carry the same value, 0 when the client left first.",
                &["cluster", "method", "status", "code"],
            ),
            request_seconds: r.histogram_vec(
                "proxy_request_duration_seconds",
                "From request head to the last byte of the answer.",
                &["cluster"],
                REQUEST_SECONDS,
            ),
            active: r.gauge_vec("tunnel_active_connections", "Requests in flight.", &["cluster"]),
            sight: Sight::new(&r, observer, &labels),
            labels,
            unrouted: OnceLock::new(),
            audit: AuditMetrics::new(&r),
            agents: r.gauge("agents_connected", "Agent sessions."),
            rate_limited: r.counter("proxy_rate_limited_total", "Requests answered 429."),
            auth_failures: r.counter_vec(
                "auth_failures_total",
                "Agents refused for their credential.",
                &["endpoint"],
            ),
            agent_sessions: r.gauge_vec(
                "culvert_agent_sessions",
                "Agent sessions by carrier: raw, websocket, compat.",
                &["cluster", "carrier"],
            ),
            session_seconds: r.histogram_vec(
                "culvert_session_duration_seconds",
                "Life of agent sessions that ended.",
                &[],
                &[1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 604_800.0],
            ),
            replacements: r.counter_vec(
                "culvert_session_replacements_total",
                "Sessions that met an older one: replaced, refused or stale_teardown.",
                &["outcome"],
            ),
            sessions_dead: r.counter_vec(
                "culvert_sessions_dead_total",
                "Sessions that ended without a farewell.",
                &["cause"],
            ),
            handshake_failures: r.counter_vec(
                "culvert_handshake_failures_total",
                "Connections that failed before their first request, or agents before their session.",
                &["stage", "reason"],
            ),
            handshakes_waiting: r.gauge(
                "culvert_handshakes_waiting",
                "Connections that have not shown a request yet.",
            ),
            accept_paused: r.counter(
                "culvert_accept_paused_seconds_total",
                "Seconds in which no connection was accepted for want of descriptors.",
            ),
            streams: r.gauge_vec("culvert_streams", "Streams open.", &["cluster"]),
            streams_opened: r.counter_vec(
                "culvert_streams_opened_total",
                "Streams opened.",
                &["cluster"],
            ),
            streams_refused: r.counter_vec(
                "culvert_streams_refused_total",
                "Requests that got no stream: limit, budget, draining or policy.",
                &["reason"],
            ),
            relay_bytes: r.counter_vec(
                "culvert_relay_bytes_total",
                "Bytes relayed: bodies, upgraded connections and flows; datapath is splice for pairs of the engine, else copy.",
                &["cluster", "direction", "datapath"],
            ),
            relay_stall: r.seconds_vec(
                "culvert_relay_stall_seconds_total",
                "Time in which bytes of pairs of the engine waited for room in the other side's socket.",
                &["cluster", "direction"],
            ),
            mux_stall: r.seconds_vec(
                "culvert_mux_window_stall_seconds_total",
                "Time in which bytes for streams of a carrier waited for the agent's credit or the carrier, added up over streams.",
                &["cluster", "direction"],
            ),
            flows: FlowMetrics::new(&r),
            channels: ChannelMetrics::new(&r),
            engine: EngineMetrics::new(&r, &panics),
            relays_closed: r.counter_vec(
                "culvert_relays_closed_total",
                "Relays that ended, by close reason.",
                &["reason"],
            ),
            io_backend: r.gauge_vec(
                "culvert_io_backend",
                "1 for what engine and session threads run on, and why.",
                &["backend", "reason"],
            ),
            memory_budget: r.gauge("culvert_memory_budget_bytes", "Bytes that may be buffered."),
            memory_used: r.gauge_vec(
                "culvert_memory_used_bytes",
                "Bytes buffered or promised as credit.",
                &["pool"],
            ),
            snapshot_generation: r.gauge("culvert_snapshot_generation", "Generation of the table in use."),
            snapshot_age: r.gauge(
                "culvert_snapshot_age_seconds",
                "Seconds since control or the clusters file last confirmed the table.",
            ),
            snapshot_source: r.gauge_vec(
                "culvert_snapshot_source_info",
                "1 for where the table came from: control, disk or file.",
                &["source"],
            ),
            control_connected: r.gauge("culvert_control_connected", "1 while control is connected."),
            draining: r.gauge("culvert_draining", "1 while draining."),
            panics,
            reload_ok: r.gauge(
                "culvert_config_last_reload_successful",
                "1 when the last reload of certificates or clusters worked.",
            ),
            reload_at: r.gauge(
                "culvert_config_last_reload_timestamp_seconds",
                "When files were last reloaded with success.",
            ),
            registry: r,
        };
        metrics.reload_ok.set(1);
        metrics
    }

    /// The instruments of a cluster, or of [`UNROUTED`].
    pub fn cluster(&self, cluster: &str) -> Arc<ClusterMetrics> {
        match cluster {
            UNROUTED => self.unrouted.get_or_init(|| self.look_up(UNROUTED)).clone(),
            cluster => self.look_up(cluster),
        }
    }

    fn look_up(&self, cluster: &str) -> Arc<ClusterMetrics> {
        let seen = self.sight.cluster(&self.labels, cluster);
        let label = &*seen.named.label;
        let bytes = |direction, datapath| {
            self.relay_bytes
                .with_label_values(&[label, direction, datapath])
        };
        Arc::new(ClusterMetrics {
            label: label.into(),
            requests: self.requests.clone(),
            by_outcome: RwLock::default(),
            seconds: self.request_seconds.with_label_values(&[label]),
            active: self.active.with_label_values(&[label]),
            streams: self.streams.with_label_values(&[label]),
            streams_opened: self.streams_opened.with_label_values(&[label]),
            bytes_to_service: bytes("to_service", "copy"),
            bytes_to_client: bytes("to_client", "copy"),
            spliced_to_service: bytes("to_service", "splice"),
            spliced_to_client: bytes("to_client", "splice"),
            stalled: ["to_service", "to_client"]
                .map(|direction| self.relay_stall.with_label_values(&[label, direction])),
            legs: self.sight.legs.bytes(&seen.named, Leg::Client, Leg::Data),
            seen: seen.clone(),
        })
    }

    /// Forgets the clusters that nobody counts for any more.
    pub fn sweep(&self) {
        self.sight.sweep(&self.labels, &self.registry);
    }

    /// The gauge of sessions of a cluster on one kind of carrier, while it is in use.
    pub fn sessions(&self, cluster: &str, carrier: &str) -> IntGauge {
        let label = self.labels.label(cluster);
        self.agent_sessions.with_label_values(&[label, carrier])
    }

    /// Seconds in which bytes for a cluster's agents waited for a carrier.
    pub fn mux_stall(&self, cluster: &str) -> Counter {
        let label = self.labels.label(cluster);
        self.mux_stall.with_label_values(&[label, "to_service"])
    }

    /// Engine or session threads run on this.
    pub fn runs_on(&self, backend: Backend) {
        let labels = [backend.name(), backend.reason];
        self.io_backend.with_label_values(&labels).set(1);
    }

    /// Fills what is only known at scrape time.
    pub fn refresh(&self, engine: &Engine) {
        self.sweep();
        self.engine.follow(engine.gauges());
        let paused = culvert_net::listen::accept_paused().as_secs();
        self.accept_paused
            .inc_by(paused.saturating_sub(self.accept_paused.get()));
    }
}

impl ClusterMetrics {
    /// Counts a request that ended; `status` 0 when no head was sent.
    pub fn count(&self, method: &Method, status: u16) {
        let known = METHODS.iter().position(|name| *name == method.as_str());
        let place = known
            .and_then(|place| u8::try_from(place).ok())
            .unwrap_or(u8::MAX);
        let key = (place, status);
        if let Some((_, counter)) = self.by_outcome.read().iter().find(|(k, _)| *k == key) {
            counter.inc();
            return;
        }
        let name = known.map_or("other", |place| METHODS[place]);
        let code = status.to_string();
        let counter = self
            .requests
            .with_label_values(&[&self.label, name, &code, &code]);
        counter.inc();
        let mut known = self.by_outcome.write();
        if known.len() < OUTCOMES_MAX && !known.iter().any(|(k, _)| *k == key) {
            known.push((key, counter));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contract_metrics_carry_exactly_their_labels() {
        let metrics = Metrics::default();
        let cluster = metrics.cluster("a");
        cluster.count(&Method::GET, 200);
        cluster.count(&Method::GET, 200);
        cluster.count(&Method::from_bytes(b"BREW").unwrap(), 418);
        cluster.seconds.observe(0.004);
        metrics.cluster(UNROUTED).count(&Method::GET, 404);
        metrics.auth_failures.with_label_values(&["/agent"]).inc();
        let text = metrics.registry.render();
        for line in [
            r#"proxy_requests_total{cluster="a",code="200",method="GET",status="200"} 2"#,
            r#"proxy_requests_total{cluster="a",code="418",method="other",status="418"} 1"#,
            r#"proxy_requests_total{cluster="_unrouted",code="404",method="GET",status="404"} 1"#,
            r#"proxy_request_duration_seconds_bucket{cluster="a",le="0.005"} 1"#,
            r#"tunnel_active_connections{cluster="a"} 0"#,
            "agents_connected 0",
            "proxy_rate_limited_total 0",
            r#"auth_failures_total{endpoint="/agent"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is missing from:\n{text}");
        }
    }

    #[test]
    fn a_thousand_clusters_stay_within_the_budget_of_series() {
        let metrics = Metrics::default();
        let mut connections = Vec::new();
        for number in 0..1100 {
            let cluster = metrics.cluster(&format!("cluster-{number}"));
            for method in ["GET", "POST", "PUT"] {
                for status in [200, 404, 502] {
                    cluster.count(&method.parse().unwrap(), status);
                }
            }
            cluster.seconds.observe(0.01);
            cluster.streams_opened.inc();
            for bytes in [
                &cluster.bytes_to_service,
                &cluster.bytes_to_client,
                &cluster.spliced_to_service,
                &cluster.spliced_to_client,
            ] {
                bytes.inc_by(9);
            }
            cluster
                .stalled
                .iter()
                .for_each(|stalled| stalled.inc_by(0.5));
            if let Some(legs) = &cluster.legs {
                legs.delivered(5, 7);
            }
            metrics
                .sight
                .first_byte(&cluster.seen, std::time::Duration::from_millis(3));
            for leg in [Leg::Client, Leg::Data, Leg::Carrier] {
                let mut connection =
                    culvert_engine::legs::Connection::new(&metrics.sight.legs, leg);
                connection.becomes(&cluster.seen.named, leg);
                connections.push(connection);
            }
        }
        drop(connections);
        let began = std::time::Instant::now();
        let text = metrics.registry.render();
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        println!(
            "{series} series, {} bytes, {:?}",
            text.len(),
            began.elapsed()
        );
        assert!(
            series <= 80_000 && text.len() <= 10 << 20,
            "{series} {}",
            text.len()
        );
        assert!(text.contains(r#"culvert_metrics_overflow_total{family="cluster"} "#));
        let own = |line: &&str| {
            line.starts_with("culvert_first_byte_duration_seconds_count")
                && line.contains("cluster-")
        };
        assert_eq!(text.lines().filter(own).count(), 32);
    }
}
