//! The audit spool.

use culvert_telemetry::metrics::{Histogram, IntCounterVec, IntGauge, Metrics as Registry};

/// Bounds of `culvert_audit_sync_seconds`: a fast disk, a busy one, one that fails.
const SYNC_SECONDS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0,
];

/// Its instruments.
#[derive(Clone)]
pub struct AuditMetrics {
    /// `culvert_audit_spool_bytes`
    pub bytes: IntGauge,
    /// `culvert_audit_spool_limit_bytes`
    pub limit_bytes: IntGauge,
    /// `culvert_audit_spool_oldest_seconds`
    pub oldest_seconds: IntGauge,
    /// `culvert_audit_sync_seconds`
    pub sync_seconds: Histogram,
    /// `culvert_audit_refused_total{reason}`
    pub refused: IntCounterVec,
    /// `culvert_audit_unrecorded_total{reason}`
    pub unrecorded: IntCounterVec,
}

impl AuditMetrics {
    /// Registers them.
    pub fn new(r: &Registry) -> Self {
        let labels: [&str; 0] = [];
        Self {
            bytes: r.gauge(
                "culvert_audit_spool_bytes",
                "Bytes of audit records that control does not have yet.",
            ),
            limit_bytes: r.gauge(
                "culvert_audit_spool_limit_bytes",
                "Bytes that the audit spool may hold.",
            ),
            oldest_seconds: r.gauge(
                "culvert_audit_spool_oldest_seconds",
                "Age of the oldest audit record that control does not have yet; 0 = none.",
            ),
            sync_seconds: r
                .histogram_vec(
                    "culvert_audit_sync_seconds",
                    "Time until a group of audit records was durable.",
                    &[],
                    SYNC_SECONDS,
                )
                .with_label_values(&labels),
            refused: r.counter_vec(
                "culvert_audit_refused_total",
                "Audited requests that were refused because no record could be kept: no_spool, full, share (of one caller), busy, disk or slow.",
                &["reason"],
            ),
            unrecorded: r.counter_vec(
                "culvert_audit_unrecorded_total",
                "Audited requests that went on without a durable record, under --audit-when-full=warn, reasons as above; refused ones beyond 600 a minute, of people and of machines: denied_flood.",
                &["reason"],
            ),
        }
    }
}
