//! What a scrape reads of the observer: memory shared with the kernel, no call, and once for all
//! families.

mod list;

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_observe::{
    ClusterReading, Cnt, Histogram, Kind as Row, Leg, Observer, Own, Reading, Tier,
};
use culvert_telemetry::metrics::family::{Family, Told};
use culvert_telemetry::metrics::octave::{BUCKETS, Spread};
use culvert_telemetry::metrics::{ClusterLabels, Metrics as Registry, UNROUTED};

use list::{ALWAYS, FROM_SKB, FROM_SOCKOPS};

/// Registers the families; in tier tcp_info they are there and tell nothing.
pub fn register(r: &Registry, observer: &Observer, labels: &Arc<ClusterLabels>) {
    let tier = observer.tier();
    let from = |least: Tier, families: &'static [Family]| match tier >= least {
        true => families,
        false => &[],
    };
    let families = [
        ALWAYS,
        from(Tier::Sockops, FROM_SOCKOPS),
        from(Tier::Skb, FROM_SKB),
    ];
    let reader = Reader {
        observer: observer.clone(),
        labels: labels.clone(),
    };
    r.collect(&families.concat(), Box::new(move |told| reader.tell(told)));
}

struct Reader {
    observer: Observer,
    labels: Arc<ClusterLabels>,
}

/// Distributions of clusters; those without a row of their own share one.
struct Rows<'a, const LABELS: usize>(BTreeMap<(&'a str, [&'static str; LABELS]), Spread>);

impl<'a, const LABELS: usize> Rows<'a, LABELS> {
    /// With a row of nobody, which says that the family is there.
    fn new(nobody: [&'static str; LABELS]) -> Self {
        Self(BTreeMap::from([((UNROUTED, nobody), Spread::default())]))
    }

    fn add(&mut self, cluster: &'a str, labels: [&'static str; LABELS], read: Option<Histogram>) {
        if let Some(read) = read {
            let row = self.0.entry((cluster, labels)).or_default();
            row.add(&spread(&read));
        }
    }

    fn tell(self, told: &mut Told<'_>) {
        for ((cluster, labels), spread) in self.0 {
            let mut all = vec![cluster];
            all.extend(labels);
            told.spread(&all, &spread);
        }
    }
}

/// What is known of all clusters, read once.
struct Known<'a> {
    residence: Rows<'a, 2>,
    rx_wait: Rows<'a, 0>,
    rtt: Rows<'a, 1>,
    legs: Vec<(&'a str, Leg, Cnt)>,
}

impl Reader {
    fn tell(&self, told: &mut [Told<'_>]) {
        let reading = self.observer.read();
        let known = self.read(&reading);
        let (always, more) = told.split_at_mut(ALWAYS.len());
        let (sockops, skb) = more.split_at_mut(more.len().min(FROM_SOCKOPS.len()));
        if let [rtt, again] = sockops {
            known.rtt.tell(rtt);
            tell_again(&known.legs, again);
        }
        if let [bytes] = skb {
            tell_bytes(&known.legs, bytes);
        }
        let [
            residence,
            unsampled,
            skbs,
            rto,
            resets,
            rx_wait,
            lost,
            stat_failed,
            unparsed,
            tag_failures,
            slots,
            runs,
            run_seconds,
            tiers,
            info,
            attach_failures,
            overflow,
        ] = always
        else {
            return;
        };
        known.residence.tell(residence);
        for (reason, count) in reading.unsampled() {
            unsampled.integer(&[reason.name()], count);
        }
        tell_by_leg(&known.legs, skbs, rto);
        tell_resets(&reading, resets);
        known.rx_wait.tell(rx_wait);
        lost.integer(&[], reading.own(Own::ClosesLost));
        stat_failed.integer(&[], reading.own(Own::StatFailed));
        unparsed.integer(&[], reading.own(Own::Unparsed));
        for failure in self.observer.tag_failures() {
            tag_failures.integer(&[failure.op, &failure.errno], failure.count);
        }
        tell_slots(&reading, slots);
        for program in self.observer.program_stats() {
            runs.integer(&[program.program], program.runs);
            run_seconds.number(&[program.program], program.run_time.as_secs_f64());
        }
        self.tell_start(tiers, info, attach_failures);
        overflow.integer(&["cluster"], self.labels.overflowed());
    }

    /// One look at each cluster.
    fn read<'a>(&self, reading: &'a Reading<'_>) -> Known<'a> {
        let mut known = Known {
            residence: Rows::new(["to_service", "empty"]),
            rx_wait: Rows::new([]),
            rtt: Rows::new(["client"]),
            legs: Vec::new(),
        };
        for cluster in reading.clusters() {
            let label = self.labels.histogram(cluster.name);
            for (kind, labels) in [
                (Row::ToServiceEmpty, ["to_service", "empty"]),
                (Row::ToClientEmpty, ["to_client", "empty"]),
                (Row::ToServiceBehind, ["to_service", "behind"]),
                (Row::ToClientBehind, ["to_client", "behind"]),
            ] {
                known.residence.add(label, labels, cluster.histogram(kind));
            }
            let waited = cluster.histogram(Row::RxWait);
            known.rx_wait.add(label, [], waited);
            for (kind, leg) in rtts(&cluster) {
                known.rtt.add(label, [leg], cluster.histogram(kind));
            }
            let legs = cluster.legs();
            known
                .legs
                .extend(legs.map(|(leg, count)| (cluster.name, leg, count)));
        }
        known
    }

    /// What came of the start.
    fn tell_start(&self, tiers: &mut Told<'_>, info: &mut Told<'_>, failures: &mut Told<'_>) {
        let report = self.observer.report();
        for tier in Tier::ALL {
            tiers.integer(&[tier.name()], u64::from(tier == report.tier));
        }
        let labels = [
            report.source(),
            report.tier.name(),
            report.requested.name(),
            report.reason_name(),
        ];
        info.integer(&labels, 1);
        let mut counts: BTreeMap<_, u64> = BTreeMap::new();
        for failure in &report.failures {
            let errno = culvert_observe::errno(failure.errno);
            *counts.entry((failure.program, errno)).or_default() += 1;
        }
        for ((program, errno), count) in counts {
            failures.integer(&[program, &errno], count);
        }
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

/// What was sent again.
fn tell_again(legs: &[(&str, Leg, Cnt)], told: &mut Told<'_>) {
    let mut is_empty = true;
    for (cluster, leg, count) in legs {
        let fast = count.retrans.saturating_sub(count.retrans_rto);
        for (kind, segments) in [("rto", count.retrans_rto), ("fast", fast)] {
            if segments > 0 {
                told.integer(&[cluster, leg.label(), kind], segments);
                is_empty = false;
            }
        }
    }
    if is_empty {
        told.integer(&[UNROUTED, "client", "rto"], 0);
    }
}

fn tell_bytes(legs: &[(&str, Leg, Cnt)], told: &mut Told<'_>) {
    for (cluster, leg, count) in legs {
        for (direction, bytes) in [("rx", count.rx_bytes), ("tx", count.tx_bytes)] {
            told.integer(&[cluster, leg.label(), direction], bytes);
        }
    }
    if legs.is_empty() {
        told.integer(&[UNROUTED, "client", "rx"], 0);
    }
}

/// Packets and time-outs of all clusters.
fn tell_by_leg(legs: &[(&str, Leg, Cnt)], skbs: &mut Told<'_>, rto: &mut Told<'_>) {
    let mut sums = BTreeMap::from([(Leg::Client.label(), Cnt::default())]);
    for (_, leg, count) in legs {
        let sum = sums.entry(leg.label()).or_default();
        sum.rx_skbs += count.rx_skbs;
        sum.tx_skbs += count.tx_skbs;
        sum.rto_events += count.rto_events;
    }
    for (leg, sum) in sums {
        skbs.integer(&[leg, "rx"], sum.rx_skbs);
        skbs.integer(&[leg, "tx"], sum.tx_skbs);
        rto.integer(&[leg], sum.rto_events);
    }
}

fn tell_resets(reading: &Reading<'_>, told: &mut Told<'_>) {
    let mut is_empty = true;
    for (leg, reason, count) in reading.resets() {
        told.integer(&[leg.label(), &reason], count);
        is_empty = false;
    }
    if is_empty {
        told.integer(&[Leg::Client.label(), "unknown"], 0);
    }
}

fn tell_slots(reading: &Reading<'_>, told: &mut Told<'_>) {
    let slots = reading.slots();
    for (state, count) in [
        ("used", slots.used),
        ("resting", slots.resting),
        ("free", slots.free),
    ] {
        told.integer(&[state], count.into());
    }
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
