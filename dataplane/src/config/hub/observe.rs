//! What is observed, and how much of it is told.

use std::time::Duration;

use culvert_observe::{Mode, Tier};
use culvert_telemetry::metrics::{CLUSTER_LABELS_MAX, ClusterHistograms};

/// Most labels of clusters: each costs 10 KiB of kernel memory.
pub const CLUSTERS_MAX: usize = 8192;

/// The eBPF observer.
#[derive(Debug, Clone, Copy)]
pub struct ObserveConfig {
    /// Whether to try, and whether to insist.
    pub mode: Mode,
    /// The highest tier to try.
    pub tier_max: Tier,
    /// Load the trace programs too.
    pub trace: bool,
}

/// How much metrics tell of clusters.
#[derive(Debug, Clone)]
pub struct MetricsConfig {
    /// Clusters with a label of their own.
    pub clusters_max: usize,
    /// Those with histograms of their own.
    pub histograms: ClusterHistograms,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            clusters_max: CLUSTER_LABELS_MAX,
            histograms: ClusterHistograms::Auto,
        }
    }
}

/// Lines for relayed connections that ended.
#[derive(Debug, Clone, Copy)]
pub struct FlowLogConfig {
    /// Which of them.
    pub mode: FlowLogMode,
    /// What is slow.
    pub slow: Duration,
}

/// Which relayed connections get a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowLogMode {
    /// None.
    Off,
    /// Slow ones.
    Slow,
    /// All.
    All,
}

impl FlowLogMode {
    /// The words of the setting.
    pub const CHOICES: [(&str, Self); 3] =
        [("off", Self::Off), ("slow", Self::Slow), ("all", Self::All)];
}
