//! One sample: a variant in fresh processes, calibrated before and after, every figure of it.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

/// A row of raw.csv.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Scenario file's name.
    pub scenario: String,
    /// Which part of a sample: `capacity`, `rate 0.50`, `bulk up`, `idle 2000`.
    pub stage: String,
    /// How the parts are joined.
    pub topology: String,
    /// `hop` or `tunnel`: who shares a CPU.
    pub layout: String,
    /// Counted from 0.
    pub round: usize,
    /// Place inside the round.
    pub order: usize,
    /// Variant.
    pub variant: String,
    /// Connections, or agents.
    pub connections: usize,
    /// Bytes of a message; 0 for bulk.
    pub size: usize,
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
    /// 99th percentile of the long path's lateness, microseconds.
    pub path_late_p99_us: u64,
    /// CPU of the first hop, nanoseconds.
    pub hub_ns: u64,
    /// CPU of the second hop.
    pub agent_ns: u64,
    /// CPU of io_uring's workers of both.
    pub io_worker_ns: u64,
    /// CPU of kworkers.
    pub kworker_ns: u64,
    /// CPU of ksoftirqd.
    pub ksoftirqd_ns: u64,
    /// CPU of generator and service.
    pub load_ns: u64,
    /// CPU of the long path.
    pub delayer_ns: u64,
    /// CPU of everybody else on the host.
    pub other_ns: u64,
    /// CPU of both hops by their control groups, ended children included.
    pub group_ns: u64,
    /// Nanoseconds of a getppid before and after.
    pub calibration_ns: [f64; 2],
    /// Stolen by the hypervisor.
    pub steal_ns: u64,
    /// Resident memory of the first hop, KiB.
    pub hub_rss_kib: u64,
    /// Proportional memory of the first hop, KiB.
    pub hub_pss_kib: u64,
    /// Resident memory of the second hop, KiB.
    pub agent_rss_kib: u64,
    /// Proportional memory of the second hop, KiB.
    pub agent_pss_kib: u64,
    /// Slab of the host, KiB.
    pub slab_kib: u64,
    /// Socket buffers of the place, KiB.
    pub sockets_kib: u64,
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
        self.gib() / self.relay_seconds()
    }

    /// GiB that arrived.
    pub fn gib(&self) -> f64 {
        float(self.bytes) / f64::from(1 << 30)
    }

    /// CPU seconds of both hops and of the kernel threads that work for them; of generator and
    /// service where there is no hop.
    pub fn relay_seconds(&self) -> f64 {
        let own = if self.variant == crate::lab::Variant::Direct.name() && self.layout == "hop" {
            self.load_ns
        } else {
            self.hub_ns + self.agent_ns
        };
        float(own + self.io_worker_ns + self.kworker_ns + self.ksoftirqd_ns) / 1e9
    }

    /// Answers a second.
    pub fn rate(&self) -> f64 {
        float(self.answers) / self.seconds
    }

    /// User memory of both hops, KiB.
    pub fn user_kib(&self) -> u64 {
        self.hub_pss_kib + self.agent_pss_kib
    }

    /// The larger calibration.
    pub fn noise_ns(&self) -> f64 {
        self.calibration_ns[0].max(self.calibration_ns[1])
    }

    /// Names of the columns, comma-separated.
    pub fn header() -> String {
        let cells = Sample::default().cells();
        let names: Vec<&str> = cells.iter().map(|(name, _)| *name).collect();
        names.join(",")
    }

    /// One line of raw.csv.
    pub fn row(&self) -> String {
        let cells = self.cells();
        let values: Vec<&str> = cells.iter().map(|(_, value)| value.as_str()).collect();
        values.join(",")
    }

    fn cells(&self) -> Vec<(&'static str, String)> {
        fn cell(name: &'static str, value: impl Display) -> (&'static str, String) {
            (name, value.to_string())
        }
        let text = |value: &str| format!("\"{}\"", value.replace('"', "'").replace('\n', " / "));
        let [p50, p90, p99, p999, max] = self.latency_us;
        vec![
            cell("scenario", &self.scenario),
            cell("stage", &self.stage),
            cell("topology", &self.topology),
            cell("layout", &self.layout),
            cell("round", self.round),
            cell("order", self.order),
            cell("variant", text(&self.variant)),
            cell("version", env!("CARGO_PKG_VERSION")),
            cell("connections", self.connections),
            cell("size", self.size),
            cell("asked_rate", format!("{:.0}", self.asked_rate)),
            cell("seconds", format!("{:.4}", self.seconds)),
            cell("answers", self.answers),
            cell("bytes", self.bytes),
            cell("errors", self.errors),
            cell("p50_us", p50),
            cell("p90_us", p90),
            cell("p99_us", p99),
            cell("p999_us", p999),
            cell("max_us", max),
            cell("late_p99_us", self.late_p99_us),
            cell("late_share", format!("{:.5}", self.late_share)),
            cell("path_late_p99_us", self.path_late_p99_us),
            cell("hub_ns", self.hub_ns),
            cell("agent_ns", self.agent_ns),
            cell("io_worker_ns", self.io_worker_ns),
            cell("kworker_ns", self.kworker_ns),
            cell("ksoftirqd_ns", self.ksoftirqd_ns),
            cell("load_ns", self.load_ns),
            cell("delayer_ns", self.delayer_ns),
            cell("other_ns", self.other_ns),
            cell("group_ns", self.group_ns),
            cell(
                "calibration_before_ns",
                format!("{:.1}", self.calibration_ns[0]),
            ),
            cell(
                "calibration_after_ns",
                format!("{:.1}", self.calibration_ns[1]),
            ),
            cell("steal_ns", self.steal_ns),
            cell("hub_rss_kib", self.hub_rss_kib),
            cell("hub_pss_kib", self.hub_pss_kib),
            cell("agent_rss_kib", self.agent_rss_kib),
            cell("agent_pss_kib", self.agent_pss_kib),
            cell("slab_kib", self.slab_kib),
            cell("sockets_kib", self.sockets_kib),
            cell("dropped", text(&self.dropped)),
        ]
    }

    /// Reads a line that [`Sample::row`] wrote, under the header `names`.
    ///
    /// # Errors
    /// Naming the column that is missing or not as written.
    pub fn read(names: &str, row: &str) -> Result<Sample> {
        let cells = Cells(names.split(',').zip(split(row)).collect());
        Ok(Sample {
            scenario: cells.get("scenario")?,
            stage: cells.get("stage")?,
            topology: cells.get("topology")?,
            layout: cells.get("layout")?,
            round: cells.get("round")?,
            order: cells.get("order")?,
            variant: cells.get("variant")?,
            connections: cells.get("connections")?,
            size: cells.get("size")?,
            asked_rate: cells.get("asked_rate")?,
            seconds: cells.get("seconds")?,
            answers: cells.get("answers")?,
            bytes: cells.get("bytes")?,
            errors: cells.get("errors")?,
            latency_us: [
                cells.get("p50_us")?,
                cells.get("p90_us")?,
                cells.get("p99_us")?,
                cells.get("p999_us")?,
                cells.get("max_us")?,
            ],
            late_p99_us: cells.get("late_p99_us")?,
            late_share: cells.get("late_share")?,
            path_late_p99_us: cells.get("path_late_p99_us")?,
            hub_ns: cells.get("hub_ns")?,
            agent_ns: cells.get("agent_ns")?,
            io_worker_ns: cells.get("io_worker_ns")?,
            kworker_ns: cells.get("kworker_ns")?,
            ksoftirqd_ns: cells.get("ksoftirqd_ns")?,
            load_ns: cells.get("load_ns")?,
            delayer_ns: cells.get("delayer_ns")?,
            other_ns: cells.get("other_ns")?,
            group_ns: cells.get("group_ns")?,
            calibration_ns: [
                cells.get("calibration_before_ns")?,
                cells.get("calibration_after_ns")?,
            ],
            steal_ns: cells.get("steal_ns")?,
            hub_rss_kib: cells.get("hub_rss_kib")?,
            hub_pss_kib: cells.get("hub_pss_kib")?,
            agent_rss_kib: cells.get("agent_rss_kib")?,
            agent_pss_kib: cells.get("agent_pss_kib")?,
            slab_kib: cells.get("slab_kib")?,
            sockets_kib: cells.get("sockets_kib")?,
            dropped: cells.get("dropped")?,
            latency: None,
        })
    }
}

struct Cells<'a>(HashMap<&'a str, &'a str>);

impl Cells<'_> {
    fn get<T: FromStr>(&self, name: &str) -> Result<T> {
        let value = self.0.get(name).and_then(|text| text.parse().ok());
        value.with_context(|| format!("raw.csv: column {name}"))
    }
}

/// Cells of a line; commas inside quotes stay.
fn split(row: &str) -> Vec<&str> {
    let (mut cells, mut start, mut quoted) = (Vec::new(), 0, false);
    for (place, letter) in row.char_indices() {
        match letter {
            '"' => quoted = !quoted,
            ',' if !quoted => {
                cells.push(row[start..place].trim_matches('"'));
                start = place + 1;
            }
            _ => {}
        }
    }
    cells.push(row[start..].trim_matches('"'));
    cells
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
    fn what_was_written_is_read() {
        let sample = Sample {
            variant: "nginx two hops, TLS".into(),
            dropped: "noise: \"a\",\nb".into(),
            latency_us: [1, 2, 3, 4, 5],
            calibration_ns: [80.5, 81.0],
            seconds: 2.25,
            ..Sample::default()
        };
        let again = Sample::read(&Sample::header(), &sample.row()).unwrap();
        assert_eq!(again.row(), sample.row());
        assert_eq!(again.variant, sample.variant);
        assert!(Sample::read("scenario,stage", "a,b").is_err());
    }
}
