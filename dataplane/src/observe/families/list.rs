//! The families that the observer fills.

use culvert_engine::legs::{LEG_BYTES, RETRANSMITTED, TCP_RTT};
use culvert_telemetry::metrics::family::{Family, Kind};

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
pub const ALWAYS: &[Family] = &[
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
        "culvert_tcp_resets_total",
        Kind::Counter,
        "RST that this host sent for watched connections, by the kernel's reason; while a trace runs.",
        &["leg", "reason"],
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
pub const FROM_SOCKOPS: &[Family] = &[
    family(TCP_RTT.0, Kind::Histogram, TCP_RTT.1, &["cluster", "leg"]),
    family(
        RETRANSMITTED.0,
        Kind::Counter,
        RETRANSMITTED.1,
        &["cluster", "leg", "type"],
    ),
];

/// The same, below tier skb.
pub const FROM_SKB: &[Family] = &[family(
    LEG_BYTES.0,
    Kind::Counter,
    LEG_BYTES.1,
    &["cluster", "leg", "direction"],
)];
