//! One sample: a variant in fresh processes, calibrated before and after, every figure of it.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

/// A row of raw.csv.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Scenario file's name.
    pub scenario: String,
    /// Which part of a sample: `capacity`, `rate 0.50`, `bulk`, `idle 1000`.
    pub stage: String,
    /// Counted from 0.
    pub round: usize,
    /// Place inside the round.
    pub order: usize,
    /// Variant.
    pub variant: String,
    /// Keep-alive connections, or agents.
    pub connections: usize,
    /// Requests a second that were asked for; 0 in a closed loop.
    pub asked_rate: f64,
    /// Length of the measurement.
    pub seconds: f64,
    /// Right answers.
    pub answers: u64,
    /// Body bytes that arrived.
    pub bytes: u64,
    /// Failed requests.
    pub errors: u64,
    /// p50, p90, p99, p99.9, largest: microseconds.
    pub latency_us: [u64; 5],
    /// 99th percentile of the generator's own lateness, microseconds.
    pub late_p99_us: u64,
    /// Share of requests sent more than 100 us late.
    pub late_share: f64,
    /// CPU of the first hop, nanoseconds.
    pub hub_ns: u64,
    /// CPU of the second hop.
    pub agent_ns: u64,
    /// CPU of generator and service.
    pub load_ns: u64,
    /// CPU of everybody else on the host.
    pub other_ns: u64,
    /// Nanoseconds of a getppid before and after.
    pub calibration_ns: [f64; 2],
    /// Stolen by the hypervisor.
    pub steal_ns: u64,
    /// Resident memory of the first hop, KiB.
    pub hub_rss_kib: u64,
    /// Proportional memory of the first hop, KiB.
    pub hub_pss_kib: u64,
    /// Slab of the host, KiB.
    pub slab_kib: u64,
    /// Why the sample does not count, empty when it does.
    pub dropped: String,
    /// Latency of every answer.
    pub latency: Option<Histogram<u64>>,
}

impl Sample {
    /// Answers for each second of relay CPU.
    pub fn answers_per_cpu_second(&self) -> f64 {
        float(self.answers) / self.relay_seconds()
    }

    /// GiB for each second of relay CPU.
    pub fn gib_per_cpu_second(&self) -> f64 {
        float(self.bytes) / f64::from(1 << 30) / self.relay_seconds()
    }

    /// CPU seconds of both hops.
    pub fn relay_seconds(&self) -> f64 {
        float(self.hub_ns + self.agent_ns) / 1e9
    }

    /// Answers a second.
    pub fn rate(&self) -> f64 {
        float(self.answers) / self.seconds
    }

    /// The larger calibration.
    pub fn noise_ns(&self) -> f64 {
        self.calibration_ns[0].max(self.calibration_ns[1])
    }

    /// Names of the columns.
    pub const HEADER: &str = "scenario,stage,topology,layout,round,order,variant,version,connections,asked_rate,seconds,answers,bytes,errors,p50_us,p90_us,p99_us,p999_us,max_us,late_p99_us,late_share,hub_ns,agent_ns,load_ns,other_ns,calibration_before_ns,calibration_after_ns,steal_ns,hub_rss_kib,hub_pss_kib,slab_kib,dropped";

    /// One line of raw.csv.
    pub fn row(&self) -> String {
        let mut row = format!(
            "{},{},lo,tunnel,{},{},\"{}\",{},{},{:.0},{:.4},{},{},{}",
            self.scenario,
            self.stage,
            self.round,
            self.order,
            self.variant,
            env!("CARGO_PKG_VERSION"),
            self.connections,
            self.asked_rate,
            self.seconds,
            self.answers,
            self.bytes,
            self.errors
        );
        for value in self.latency_us {
            let _ = write!(row, ",{value}");
        }
        let _ = write!(
            row,
            ",{},{:.5},{},{},{},{},{:.1},{:.1},{},{},{},{},\"{}\"",
            self.late_p99_us,
            self.late_share,
            self.hub_ns,
            self.agent_ns,
            self.load_ns,
            self.other_ns,
            self.calibration_ns[0],
            self.calibration_ns[1],
            self.steal_ns,
            self.hub_rss_kib,
            self.hub_pss_kib,
            self.slab_kib,
            self.dropped.replace('"', "'")
        );
        row
    }
}

/// A count as a float; counts here stay far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_value_for_every_column() {
        let row = Sample {
            variant: "nginx two hops".into(),
            ..Sample::default()
        }
        .row();
        assert_eq!(row.split(',').count(), Sample::HEADER.split(',').count());
    }
}
