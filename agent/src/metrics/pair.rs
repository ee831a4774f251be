//! What the two roles of a pair tell.

use culvert_telemetry::metrics::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Metrics};

use super::Counted;

/// What a pair carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairForm {
    /// The mux: all connections of a broker.
    Mux,
    /// One connection.
    Raw,
}

/// The step of making a pair that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairStep {
    /// A name has no address.
    Resolve,
    /// No TCP connection.
    Connect,
    /// The relay said no, or nothing.
    Introduce,
    /// The end-to-end TLS.
    Handshake,
    /// The first certificate.
    Boot,
}

/// Instruments of the roles bridge and broker.
pub struct PairMetrics {
    pairs: IntGaugeVec,
    ended: IntCounterVec,
    waiting: IntGauge,
    failures: IntCounterVec,
    /// Local connections that were reset because no pair took them.
    pub unserved: IntCounter,
}

impl PairForm {
    fn as_str(self) -> &'static str {
        match self {
            Self::Mux => "mux",
            Self::Raw => "raw",
        }
    }
}

impl PairStep {
    fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Introduce => "introduce",
            Self::Handshake => "handshake",
            Self::Boot => "boot",
        }
    }
}

impl PairMetrics {
    pub(super) fn new(m: &Metrics) -> Self {
        let waiting: IntGaugeVec = m.gauge_vec(
            "culvert_pair_waiting_connections",
            "Connections that wait at relays, or at the broker in mode reverse, for the other side.",
            &[],
        );
        Self {
            pairs: m.gauge_vec(
                "culvert_pairs",
                "Pairs that stand now, by what they carry: mux (all connections of a broker) or raw (one connection).",
                &["form"],
            ),
            ended: m.counter_vec(
                "culvert_pairs_total",
                "Pairs that ended; raw ones count as flows.",
                &["reason"],
            ),
            waiting: waiting.with_label_values(&[] as &[&str]),
            failures: m.counter_vec(
                "culvert_pair_failures_total",
                "Attempts to make a pair that failed, by the step: resolve, connect, introduce, handshake, boot.",
                &["step"],
            ),
            unserved: m.counter(
                "culvert_pair_unserved_total",
                "Local connections of a broker that were reset because no pair took them.",
            ),
        }
    }

    /// A pair stands until the guard is dropped.
    #[must_use]
    pub fn stands(&self, form: PairForm) -> Counted {
        let now = self.pairs.with_label_values(&[form.as_str()]);
        now.inc();
        Counted(now)
    }

    /// A pair that carried the mux ended; `reason` is a close reason's word.
    pub fn ended(&self, reason: &'static str) {
        self.ended.with_label_values(&[reason]).inc();
    }

    /// A connection waits until the guard is dropped.
    #[must_use]
    pub fn waits(&self) -> Counted {
        self.waiting.inc();
        Counted(self.waiting.clone())
    }

    /// Connections that wait now.
    #[must_use]
    pub fn waiting(&self) -> i64 {
        self.waiting.get()
    }

    /// Pairs that stand now.
    #[must_use]
    pub fn standing(&self) -> i64 {
        let of = |form: PairForm| self.pairs.with_label_values(&[form.as_str()]).get();
        of(PairForm::Mux) + of(PairForm::Raw)
    }

    /// An attempt failed at `step`.
    pub fn failed(&self, step: PairStep) {
        self.failures.with_label_values(&[step.as_str()]).inc();
    }
}
