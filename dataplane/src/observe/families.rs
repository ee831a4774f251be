//! What a scrape reads of the observer: memory shared with the kernel, no call.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_engine::legs::{LEG_BYTES, RETRANSMITTED, TCP_RTT};
use culvert_observe::{ClusterReading, Histogram, Kind as Row, Leg, Observer, Own, Reading, Tier};
use culvert_telemetry::metrics::family::{Family, Kind, Sample};
use culvert_telemetry::metrics::octave::{BUCKETS, Spread};
use culvert_telemetry::metrics::{ClusterLabels, Metrics as Registry, UNROUTED};

const fn family(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    labels: &'static [&'static str],
) -> Family {
    Family {
        name,
        kind,
        help,
        labels,
    }
}

/// Those that are there in every tier; without their source they stay at zero.
const ALWAYS: &[Family] = &[
    family(
        "culvert_relay_residence_seconds",
        Kind::Histogram,
        "From the kernel's receipt of a byte on one leg to its sending of it on the other, with nothing queued before it (empty) or with bytes of the same direction still inside (behind); tier skb.",
        &["cluster", "direction", "queue"],
    ),
    family(
        "culvert_relay_residence_unsampled_total",
        Kind::Counter,
        "Bytes or pairs whose residence could not be measured: no_slot, stale, hole, offset, generation, no_base.",
        &["reason"],
    ),
    family(
        "culvert_leg_skbs_total",
        Kind::Counter,
        "Packets as the kernel's offloads have them, many segments each; tier skb.",
        &["leg", "direction"],
    ),
    family(
        "culvert_tcp_rto_total",
        Kind::Counter,
        "Retransmission time-outs; tier sockops.",
        &["leg"],
    ),
    family(
        "culvert_tcp_rx_queue_wait_seconds",
        Kind::Histogram,
        "From the receipt of bytes to their reading, while a trace runs.",
        &["cluster"],
    ),
    family(
        "culvert_ebpf_events_lost_total",
        Kind::Counter,
        "Records of closed connections that found no room: detail is lost, no byte.",
        &[],
    ),
    family(
        "culvert_ebpf_stat_failures_total",
        Kind::Counter,
        "Connections for which the kernel had no memory to count.",
        &[],
    ),
    family(
        "culvert_ebpf_unparsed_total",
        Kind::Counter,
        "Packets of watched connections that could not be parsed.",
        &[],
    ),
    family(
        "culvert_ebpf_tag_failures_total",
        Kind::Counter,
        "Sockets that could not be tagged or looked up.",
        &["op", "errno"],
    ),
    family(
        "culvert_ebpf_pair_slots",
        Kind::Gauge,
        "Places for pairs whose residence is measured: used, resting, free.",
        &["state"],
    ),
    family(
        "culvert_ebpf_program_runs_total",
        Kind::Counter,
        "Runs of a program; moves with the sysctl kernel.bpf_stats_enabled.",
        &["program"],
    ),
    family(
        "culvert_ebpf_program_run_seconds_total",
        Kind::Counter,
        "Time in a program; moves with the sysctl kernel.bpf_stats_enabled.",
        &["program"],
    ),
    family(
        "culvert_ebpf_tier",
        Kind::Gauge,
        "1 for the observer's tier: tcp_info, sockops, skb.",
        &["tier"],
    ),
    family(
        "culvert_observer_info",
        Kind::Gauge,
        "1 for where figures of TCP connections come from, and why from there.",
        &["source", "tier", "requested", "reason"],
    ),
    family(
        "culvert_ebpf_attach_failures_total",
        Kind::Counter,
        "Programs that could not be loaded or attached.",
        &["program", "errno"],
    ),
    family(
        "culvert_metrics_overflow_total",
        Kind::Counter,
        "Clusters that found no label of their own left.",
        &["family"],
    ),
];

/// In their place the process itself tells what it knows, below tier sockops.
const FROM_SOCKOPS: &[Family] = &[
    family(TCP_RTT.0, Kind::Histogram, TCP_RTT.1, &["cluster", "leg"]),
    family(
        RETRANSMITTED.0,
        Kind::Counter,
        RETRANSMITTED.1,
        &["cluster", "leg", "type"],
    ),
];

/// The same, below tier skb.
const FROM_SKB: &[Family] = &[family(
    LEG_BYTES.0,
    Kind::Counter,
    LEG_BYTES.1,
    &["cluster", "leg", "direction"],
)];

/// Registers the families; in tier tcp_info they are there and tell nothing.
pub fn register(r: &Registry, observer: &Observer, labels: &Arc<ClusterLabels>) {
    let always = Reader::new(observer, labels);
    r.collect(ALWAYS, Box::new(move || always.always()));
    if observer.tier() >= Tier::Sockops {
        let tcp = Reader::new(observer, labels);
        r.collect(FROM_SOCKOPS, Box::new(move || tcp.tcp()));
    }
    if observer.tier() >= Tier::Skb {
        let bytes = Reader::new(observer, labels);
        r.collect(FROM_SKB, Box::new(move || vec![bytes.bytes()]));
    }
}

struct Reader {
    observer: Observer,
    labels: Arc<ClusterLabels>,
}

/// Distributions of clusters; those without a row of their own share one.
#[derive(Default)]
struct Rows<const LABELS: usize>(BTreeMap<(String, [&'static str; LABELS]), Spread>);

impl<const LABELS: usize> Rows<LABELS> {
    fn add(&mut self, cluster: &str, labels: [&'static str; LABELS], read: Option<Histogram>) {
        if let Some(read) = read {
            let row = self.0.entry((cluster.to_owned(), labels)).or_default();
            row.add(&spread(&read));
        }
    }

    fn samples(self, nobody: [&'static str; LABELS]) -> Vec<Sample> {
        let mut rows = self.0;
        rows.entry((UNROUTED.to_owned(), nobody)).or_default();
        let sample = |((cluster, labels), spread): ((String, [&'static str; LABELS]), Spread)| {
            let mut all = vec![cluster.as_str()];
            all.extend(labels);
            Sample::spread(&all, spread)
        };
        rows.into_iter().map(sample).collect()
    }
}

impl Reader {
    fn new(observer: &Observer, labels: &Arc<ClusterLabels>) -> Self {
        Self {
            observer: observer.clone(),
            labels: labels.clone(),
        }
    }

    fn always(&self) -> Vec<Vec<Sample>> {
        let reading = self.observer.read();
        let unsampled = reading
            .unsampled()
            .map(|(reason, count)| Sample::number(&[reason.name()], count as f64));
        let slots = reading.slots();
        let slots = [
            ("used", slots.used),
            ("resting", slots.resting),
            ("free", slots.free),
        ];
        let own = |cell| vec![Sample::number(&[], reading.own(cell) as f64)];
        let failures = self.observer.tag_failures();
        let failures = failures
            .iter()
            .map(|it| Sample::number(&[it.op, &it.errno], it.count as f64));
        let (runs, seconds) = self.programs();
        vec![
            self.residence(&reading),
            unsampled.into(),
            skbs(&reading),
            by_leg(&reading, |count| count.rto_events),
            self.rx_wait(&reading),
            own(Own::ClosesLost),
            own(Own::StatFailed),
            own(Own::Unparsed),
            failures.collect(),
            slots
                .map(|(state, count)| Sample::number(&[state], count.into()))
                .into(),
            runs,
            seconds,
            self.tiers(),
            self.info(),
            self.attach_failures(),
            vec![Sample::number(
                &["cluster"],
                self.labels.overflowed() as f64,
            )],
        ]
    }

    fn residence(&self, reading: &Reading<'_>) -> Vec<Sample> {
        let mut rows = Rows::default();
        for cluster in reading.clusters() {
            let label = self.labels.histogram(cluster.name);
            for (kind, labels) in [
                (Row::ToServiceEmpty, ["to_service", "empty"]),
                (Row::ToClientEmpty, ["to_client", "empty"]),
                (Row::ToServiceBehind, ["to_service", "behind"]),
                (Row::ToClientBehind, ["to_client", "behind"]),
            ] {
                rows.add(label, labels, cluster.histogram(kind));
            }
        }
        rows.samples(["to_service", "empty"])
    }

    fn rx_wait(&self, reading: &Reading<'_>) -> Vec<Sample> {
        let mut rows = Rows::default();
        for cluster in reading.clusters() {
            let label = self.labels.histogram(cluster.name);
            rows.add(label, [], cluster.histogram(Row::RxWait));
        }
        rows.samples([])
    }

    /// Round trips, and what was sent again.
    fn tcp(&self) -> Vec<Vec<Sample>> {
        let reading = self.observer.read();
        let (mut rows, mut again) = (Rows::default(), Vec::new());
        for cluster in reading.clusters() {
            let label = self.labels.histogram(cluster.name);
            for (kind, leg) in rtts(&cluster) {
                rows.add(label, [leg], cluster.histogram(kind));
            }
            for (leg, count) in cluster.legs() {
                let fast = count.retrans.saturating_sub(count.retrans_rto);
                for (kind, segments) in [("rto", count.retrans_rto), ("fast", fast)] {
                    if segments > 0 {
                        let labels = [cluster.name, leg.label(), kind];
                        again.push(Sample::number(&labels, segments as f64));
                    }
                }
            }
        }
        if again.is_empty() {
            again.push(Sample::number(&[UNROUTED, "client", "rto"], 0.0));
        }
        vec![rows.samples(["client"]), again]
    }

    fn bytes(&self) -> Vec<Sample> {
        let reading = self.observer.read();
        let mut samples = Vec::new();
        for cluster in reading.clusters() {
            for (leg, count) in cluster.legs() {
                for (direction, bytes) in [("rx", count.rx_bytes), ("tx", count.tx_bytes)] {
                    let labels = [cluster.name, leg.label(), direction];
                    samples.push(Sample::number(&labels, bytes as f64));
                }
            }
        }
        if samples.is_empty() {
            samples.push(Sample::number(&[UNROUTED, "client", "rx"], 0.0));
        }
        samples
    }

    fn programs(&self) -> (Vec<Sample>, Vec<Sample>) {
        let stats = self.observer.program_stats();
        let runs = stats
            .iter()
            .map(|it| Sample::number(&[it.program], it.runs as f64));
        let seconds = stats
            .iter()
            .map(|it| Sample::number(&[it.program], it.run_time.as_secs_f64()));
        (runs.collect(), seconds.collect())
    }

    fn tiers(&self) -> Vec<Sample> {
        let now = self.observer.tier();
        Tier::ALL
            .map(|tier| Sample::number(&[tier.name()], f64::from(u8::from(tier == now))))
            .into()
    }

    fn info(&self) -> Vec<Sample> {
        let report = self.observer.report();
        let labels = [
            report.source(),
            report.tier.name(),
            report.requested.name(),
            report.reason_name(),
        ];
        vec![Sample::number(&labels, 1.0)]
    }

    fn attach_failures(&self) -> Vec<Sample> {
        let mut counts = BTreeMap::new();
        for failure in &self.observer.report().failures {
            let errno = culvert_observe::errno(failure.errno);
            *counts.entry((failure.program, errno)).or_insert(0) += 1;
        }
        let sample = |((program, errno), count): ((&str, String), i32)| {
            Sample::number(&[program, &errno], count.into())
        };
        counts.into_iter().map(sample).collect()
    }
}

/// Rows of round trips: clients and pairs share one, which the cluster tells
/// apart.
fn rtts(cluster: &ClusterReading<'_>) -> [(Row, &'static str); 3] {
    let near = match cluster.name {
        "_pair" => "pair",
        _ => "client",
    };
    [
        (Row::RttClient, near),
        (Row::RttCarrier, "carrier"),
        (Row::RttData, "data"),
    ]
}

fn skbs(reading: &Reading<'_>) -> Vec<Sample> {
    let mut counts: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for cluster in reading.clusters() {
        for (leg, count) in cluster.legs() {
            let sum = counts.entry(leg.label()).or_default();
            sum[0] += count.rx_skbs;
            sum[1] += count.tx_skbs;
        }
    }
    counts.entry(Leg::Client.label()).or_default();
    let samples = counts.into_iter().flat_map(|(leg, [rx, tx])| {
        [("rx", rx), ("tx", tx)]
            .map(|(direction, count)| Sample::number(&[leg, direction], count as f64))
    });
    samples.collect()
}

fn by_leg(reading: &Reading<'_>, of: fn(&culvert_observe::Cnt) -> u64) -> Vec<Sample> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for cluster in reading.clusters() {
        for (leg, count) in cluster.legs() {
            *counts.entry(leg.label()).or_default() += of(&count);
        }
    }
    counts.entry(Leg::Client.label()).or_default();
    let samples = counts
        .into_iter()
        .map(|(leg, count)| Sample::number(&[leg], count as f64));
    samples.collect()
}

/// Quarter octaves, folded.
fn spread(read: &Histogram) -> Spread {
    let mut buckets = [0; BUCKETS];
    let mut below = 0;
    for (own, (_, up_to)) in buckets.iter_mut().zip(read.cumulative()) {
        *own = up_to - below;
        below = up_to;
    }
    Spread {
        buckets,
        sum_s: read.sum_s(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_buckets_of_the_kernel_are_one_of_the_text() {
        let mut read = Histogram::EMPTY;
        for bucket in 0..read.buckets.len() {
            read.buckets[bucket] = 1;
        }
        read.sum_ns = 2_500_000_000;
        let spread = spread(&read);
        assert_eq!(spread.count(), 106);
        assert_eq!((spread.buckets[0], spread.buckets[1]), (1, 4));
        assert_eq!((spread.buckets[26], spread.buckets[27]), (4, 1));
        assert!((spread.sum_s - 2.5).abs() < 1e-9);
    }

    #[test]
    fn without_an_observer_every_family_is_there_and_tells_nothing() {
        let registry = Registry::new();
        let observer = Observer::absent(culvert_observe::Reason::Disabled);
        register(&registry, &observer, &Arc::default());
        let text = registry.render();
        for line in [
            "culvert_relay_residence_seconds_count{cluster=\"_unrouted\",direction=\"to_service\",queue=\"empty\"} 0",
            "culvert_ebpf_tier{tier=\"tcp_info\"} 1",
            "culvert_ebpf_tier{tier=\"skb\"} 0",
            "culvert_observer_info{reason=\"disabled\",requested=\"off\",source=\"tcp_info\",tier=\"tcp_info\"} 1",
            "culvert_tcp_rto_total{leg=\"client\"} 0",
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line}:\n{text}");
        }
    }
}
