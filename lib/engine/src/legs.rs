//! What a process tells of its connections by cluster and leg: how many, how
//! long, and what the kernel counted of them (`TCP_INFO`), which is read every
//! 30 s and before a close.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_net::listen::{Totals, totals};
use culvert_proto::close::CloseReason;
use culvert_telemetry::metrics::{
    ClusterLabels, CounterVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Metrics, UNROUTED,
};

/// Between two looks at what the kernel counted of a connection.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(30);

/// Which part of a path a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// From a client.
    Client,
    /// Carries streams between agent and hub.
    Carrier,
    /// Carries one relayed connection between agent and hub.
    Data,
    /// From the agent to a service.
    Upstream,
    /// Either side of a pair.
    Pair,
    /// Not known yet, or none of these.
    Other,
}

impl Leg {
    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Carrier => "carrier",
            Self::Data => "data",
            Self::Upstream => "upstream",
            Self::Pair => "pair",
            Self::Other => "other",
        }
    }
}

/// What another source tells in this process, so that nothing is told twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// Round trips and retransmissions.
    pub tcp: bool,
    /// Bytes of legs.
    pub bytes: bool,
}

/// A cluster as labels name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// In counters and gauges.
    pub label: Box<str>,
    /// In histograms.
    pub histogram: Box<str>,
}

/// The instruments.
pub struct LegMetrics {
    open: IntGaugeVec,
    opened: IntCounterVec,
    closed: IntCounterVec,
    seconds: HistogramVec,
    segments: IntCounterVec,
    limited: CounterVec,
    rtt: Option<HistogramVec>,
    retransmitted: Option<IntCounterVec>,
    bytes: Option<IntCounterVec>,
    nobody: Arc<Named>,
}

/// The bytes of both legs of a cluster's relays, as they were delivered.
pub struct LegBytes {
    /// Received and sent on the client's leg, and on the service's.
    counters: [IntCounter; 4],
}

/// One connection, from its accept or dial to its end. Dropping it is the end.
pub struct Connection {
    metrics: Arc<LegMetrics>,
    named: Arc<Named>,
    leg: Leg,
    open: IntGauge,
    began: Instant,
    sampled: Instant,
    told: Totals,
    reason: CloseReason,
    is_counted: bool,
}

impl Named {
    /// What `labels` call `cluster`.
    #[must_use]
    pub fn new(labels: &ClusterLabels, cluster: &str) -> Arc<Self> {
        Arc::new(Self {
            label: labels.label(cluster).into(),
            histogram: labels.histogram(cluster).into(),
        })
    }
}

impl LegMetrics {
    /// Registers what is not told elsewhere.
    #[must_use]
    pub fn new(m: &Metrics, elsewhere: Elsewhere) -> Arc<Self> {
        let leg = &["cluster", "leg"];
        let tcp = !elsewhere.tcp;
        let metrics = Self {
            open: m.gauge_vec("culvert_connections", "Connections now, by leg.", leg),
            opened: m.counter_vec(
                "culvert_connections_opened_total",
                "Connections that came to be, under the cluster they turned out to belong to.",
                leg,
            ),
            closed: m.counter_vec(
                "culvert_connections_closed_total",
                "Connections that ended, by close reason.",
                &["cluster", "leg", "reason"],
            ),
            seconds: m.times_vec(
                "culvert_connection_duration_seconds",
                "Life of connections that ended.",
                &["leg"],
            ),
            segments: m.counter_vec(
                "culvert_tcp_segments_total",
                "TCP segments of looked-at connections.",
                &["leg", "direction"],
            ),
            limited: m.seconds_vec(
                "culvert_tcp_limited_seconds_total",
                "Time in which connections had bytes to send and could not: the peer's window (rwnd), the send buffer (sndbuf), or the path (cwnd).",
                &["cluster", "leg", "limit"],
            ),
            rtt: tcp.then(|| {
                m.times_vec(TCP_RTT.0, TCP_RTT.1, leg)
            }),
            retransmitted: tcp.then(|| {
                m.counter_vec(RETRANSMITTED.0, RETRANSMITTED.1, &["cluster", "leg", "type"])
            }),
            bytes: (!elsewhere.bytes)
                .then(|| m.counter_vec(LEG_BYTES.0, LEG_BYTES.1, &["cluster", "leg", "direction"])),
            nobody: Arc::new(Named {
                label: UNROUTED.into(),
                histogram: UNROUTED.into(),
            }),
        };
        Arc::new(metrics)
    }

    /// Who is meant before it is known whose a connection is.
    #[must_use]
    pub fn nobody(&self) -> &Arc<Named> {
        &self.nobody
    }

    /// The bytes of relays of a cluster between these legs; `None` where the
    /// kernel counts them.
    #[must_use]
    pub fn bytes(&self, named: &Named, client: Leg, service: Leg) -> Option<LegBytes> {
        let bytes = self.bytes.as_ref()?;
        let of = |leg: Leg, direction| {
            bytes.with_label_values(&[&*named.label, leg.as_str(), direction])
        };
        Some(LegBytes {
            counters: [
                of(client, "rx"),
                of(client, "tx"),
                of(service, "rx"),
                of(service, "tx"),
            ],
        })
    }

    fn open(&self, named: &Named, leg: Leg) -> IntGauge {
        let open = self.open.with_label_values(&[&*named.label, leg.as_str()]);
        open.inc();
        open
    }
}

/// Name and meaning of families that the kernel's observer tells where it runs.
pub const TCP_RTT: (&str, &str) = (
    "culvert_tcp_rtt_seconds",
    "Round trips of the legs' TCP: each one measured, or the smoothed one every 30 s where no observer runs in the kernel.",
);
/// See [`TCP_RTT`].
pub const RETRANSMITTED: (&str, &str) = (
    "culvert_tcp_retransmitted_segments_total",
    "TCP segments sent again, after a time-out (rto) or before one (fast); unknown where no observer runs in the kernel.",
);
/// See [`TCP_RTT`].
pub const LEG_BYTES: (&str, &str) = (
    "culvert_leg_bytes_total",
    "Payload bytes of TCP connections as the kernel saw them; where no observer runs in the kernel, bytes of relays as they were delivered.",
);

impl LegBytes {
    /// So many bytes were delivered.
    pub fn delivered(&self, to_service: u64, to_client: u64) {
        let [client_rx, client_tx, service_rx, service_tx] = &self.counters;
        client_rx.inc_by(to_service);
        service_tx.inc_by(to_service);
        service_rx.inc_by(to_client);
        client_tx.inc_by(to_client);
    }
}

impl Connection {
    /// A connection of nobody in particular.
    #[must_use]
    pub fn new(metrics: &Arc<LegMetrics>, leg: Leg) -> Self {
        let named = metrics.nobody.clone();
        let open = metrics.open(&named, leg);
        let now = Instant::now();
        Self {
            metrics: metrics.clone(),
            named,
            leg,
            open,
            began: now,
            sampled: now,
            told: Totals::default(),
            reason: CloseReason::Finished,
            is_counted: false,
        }
    }

    /// It turned out to be this leg of this cluster.
    pub fn becomes(&mut self, named: &Arc<Named>, leg: Leg) {
        let is_same = self.leg == leg && self.named.label == named.label;
        if !is_same {
            let open = self.metrics.open(named, leg);
            std::mem::replace(&mut self.open, open).dec();
            self.named = named.clone();
            self.leg = leg;
        }
        self.count();
    }

    /// When it came to be.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Which leg it is.
    #[must_use]
    pub fn leg(&self) -> Leg {
        self.leg
    }

    /// Why it will have ended.
    pub fn ends(&mut self, reason: CloseReason) {
        self.reason = reason;
    }

    /// Looks at what the kernel counted, if that was long ago.
    pub fn sample_at_times(&mut self, socket: BorrowedFd<'_>) {
        if self.sampled.elapsed() >= SAMPLE_INTERVAL {
            self.sample(socket);
        }
    }

    /// Tells what the kernel counted since the last look.
    pub fn sample(&mut self, socket: BorrowedFd<'_>) {
        self.sampled = Instant::now();
        let Ok(now) = totals(&socket) else {
            return;
        };
        let before = std::mem::replace(&mut self.told, now);
        let (metrics, leg) = (&self.metrics, self.leg.as_str());
        let labels = [&*self.named.label, leg];
        if let Some(rtt) = &metrics.rtt
            && now.rtt_us > 0
        {
            rtt.with_label_values(&[&*self.named.histogram, leg])
                .observe(f64::from(now.rtt_us) / 1e6);
        }
        let again = now.retransmitted.wrapping_sub(before.retransmitted);
        if let Some(counter) = metrics.retransmitted.as_ref().filter(|_| again > 0) {
            counter
                .with_label_values(&[labels[0], leg, "unknown"])
                .inc_by(again.into());
        }
        for (direction, now, before) in [
            ("rx", now.segments_in, before.segments_in),
            ("tx", now.segments_out, before.segments_out),
        ] {
            let counter = metrics.segments.with_label_values(&[leg, direction]);
            counter.inc_by(now.wrapping_sub(before).into());
        }
        for (limit, us) in limits(&now)
            .into_iter()
            .zip(limits(&before))
            .map(|((limit, now), (_, before))| (limit, now.saturating_sub(before)))
        {
            if us > 0 {
                let seconds = us as f64 / 1e6;
                metrics
                    .limited
                    .with_label_values(&[labels[0], leg, limit])
                    .inc_by(seconds);
            }
        }
    }

    fn count(&mut self) {
        if !std::mem::replace(&mut self.is_counted, true) {
            let labels = [&*self.named.label, self.leg.as_str()];
            self.metrics.opened.with_label_values(&labels).inc();
        }
    }
}

/// The parts of the time with something to send.
fn limits(totals: &Totals) -> [(&'static str, u64); 3] {
    let cwnd = totals
        .busy_us
        .saturating_sub(totals.rwnd_us)
        .saturating_sub(totals.sndbuf_us);
    [
        ("rwnd", totals.rwnd_us),
        ("sndbuf", totals.sndbuf_us),
        ("cwnd", cwnd),
    ]
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.count();
        self.open.dec();
        let leg = self.leg.as_str();
        let labels = [&*self.named.label, leg, self.reason.as_str()];
        self.metrics.closed.with_label_values(&labels).inc();
        let lived = self.began.elapsed().as_secs_f64();
        self.metrics
            .seconds
            .with_label_values(&[leg])
            .observe(lived);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    #[test]
    fn a_connection_counts_where_it_turned_out_to_belong_and_once() {
        let m = Metrics::new();
        let metrics = LegMetrics::new(&m, Elsewhere::default());
        let named = Named::new(&ClusterLabels::default(), "a");
        let stray = Connection::new(&metrics, Leg::Other);
        let mut routed = Connection::new(&metrics, Leg::Other);
        assert!(
            m.render()
                .contains("culvert_connections{cluster=\"_unrouted\",leg=\"other\"} 2")
        );
        routed.becomes(&named, Leg::Client);
        routed.becomes(&named, Leg::Client);
        routed.ends(CloseReason::ClientReset);
        drop((stray, routed));
        let text = m.render();
        for line in [
            "culvert_connections{cluster=\"_unrouted\",leg=\"other\"} 0",
            "culvert_connections{cluster=\"a\",leg=\"client\"} 0",
            "culvert_connections_opened_total{cluster=\"_unrouted\",leg=\"other\"} 1",
            "culvert_connections_opened_total{cluster=\"a\",leg=\"client\"} 1",
            "culvert_connections_closed_total{cluster=\"_unrouted\",leg=\"other\",reason=\"finished\"} 1",
            "culvert_connections_closed_total{cluster=\"a\",leg=\"client\",reason=\"client_reset\"} 1",
            "culvert_connection_duration_seconds_count{leg=\"client\"} 1",
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line}:\n{text}");
        }
    }

    #[test]
    fn what_the_kernel_counted_is_told_as_it_grows() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(&[1; 100_000]).unwrap();
        far.read_exact(&mut [0; 100_000]).unwrap();
        let m = Metrics::new();
        let metrics = LegMetrics::new(&m, Elsewhere::default());
        let mut connection = Connection::new(&metrics, Leg::Data);
        let mut sample = || {
            connection.sample(near.as_fd());
            let text = m.render();
            let find = |name: &str| {
                let line = text.lines().find(|line| line.starts_with(name)).unwrap();
                line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
            };
            let sent = find("culvert_tcp_segments_total{direction=\"tx\",leg=\"data\"}");
            let rtts = find("culvert_tcp_rtt_seconds_count{cluster=\"_unrouted\",leg=\"data\"}");
            (sent, rtts)
        };
        let (sent, rtts) = sample();
        assert!(sent > 1.0 && rtts == 1.0, "{sent} {rtts}");
        assert_eq!(sample().1, 2.0);
        assert!((sample().0 - sent).abs() < 3.0, "counted once");
    }
}
