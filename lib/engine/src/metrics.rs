//! What the engine's threads tell, as instruments of the process that runs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use culvert_proto::close::CloseReason;
use culvert_telemetry::metrics::family::{Family, Kind};
use culvert_telemetry::metrics::{
    Counter, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Metrics,
};
use parking_lot::Mutex;

use crate::inbox::Gauges;
use crate::tally::{DATAPATHS, DIRECTIONS, TurnsRead};

/// The engine's instruments.
pub struct EngineMetrics {
    pairs: IntGaugeVec,
    turns: Arc<Mutex<TurnsRead>>,
    pipes: IntGaugeVec,
    pipes_exhausted: Followed,
    rest_bytes: IntGauge,
    spun: Counter,
    bytes: Followed,
    spliced_bytes: Followed,
    refused: IntCounterVec,
    panics: Followed,
}

/// A counter that follows one that threads keep.
struct Followed {
    counter: IntCounter,
    seen: AtomicU64,
}

impl EngineMetrics {
    /// Registers them; `panics` is the process's counter of panics, by task.
    #[must_use]
    pub fn new(m: &Metrics, panics: &IntCounterVec) -> Self {
        Self {
            pairs: m.gauge_vec(
                "culvert_engine_pairs",
                "Pairs of sockets that the engine relays.",
                &["thread"],
            ),
            turns: tell_turns(m),
            pipes: m.gauge_vec(
                "culvert_pipes",
                "Pipes of the engine: borrowed by directions that splice, or idle and kept for the next.",
                &["state"],
            ),
            pipes_exhausted: Followed::new(m.counter(
                "culvert_pipe_pool_exhausted_total",
                "Times a direction copied for want of a pipe.",
            )),
            rest_bytes: m.gauge(
                "culvert_engine_rest_bytes",
                "Bytes read and not sent yet, kept for sinks that took a part.",
            ),
            spun: m
                .seconds_vec(
                    "culvert_engine_spun_seconds_total",
                    "Seconds of CPU spent waiting for the next small message.",
                    &[],
                )
                .with_label_values::<&str>(&[]),
            bytes: Followed::new(m.counter(
                "culvert_engine_bytes_total",
                "Bytes delivered by the engine, pairs that live included.",
            )),
            spliced_bytes: Followed::new(m.counter(
                "culvert_engine_spliced_bytes_total",
                "Of these, bytes that no copy touched.",
            )),
            refused: m.counter_vec(
                "culvert_engine_refused_total",
                "Pairs refused at a limit, by close reason.",
                &["reason"],
            ),
            panics: Followed::new(panics.with_label_values(&["engine"])),
        }
    }

    /// A limit was reached.
    pub fn refused(&self, reason: CloseReason) {
        self.refused.with_label_values(&[reason.as_str()]).inc();
    }

    /// Bytes that the engine delivered, as of the last look at its threads: towards
    /// the service and towards the client, copied and spliced.
    #[must_use]
    pub fn delivered(&self) -> [[u64; 2]; 2] {
        self.turns.lock().bytes
    }

    /// Takes over what the threads count.
    pub fn follow<'a>(&self, threads: impl Iterator<Item = &'a Gauges>) {
        let (mut pipes, mut idle, mut rest) = (0, 0, 0);
        let mut turns = TurnsRead::default();
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let (mut exhausted, mut spun_us, mut panics) = (0, 0, 0);
        let (mut bytes, mut spliced) = (0, 0);
        for (number, thread) in threads.enumerate() {
            let pairs = thread.pairs.load(Ordering::Relaxed);
            self.pairs
                .with_label_values(&[number.to_string()])
                .set(gauge(pairs));
            thread.turns.add_to(&mut turns);
            pipes += thread.pipes.load(Ordering::Relaxed);
            idle += thread.pipes_idle.load(Ordering::Relaxed);
            rest += thread.rest_bytes.load(Ordering::Relaxed);
            exhausted += thread.pipes_exhausted.load(Ordering::Relaxed);
            spun_us += thread.spun_us.load(Ordering::Relaxed);
            bytes += thread.bytes.load(Ordering::Relaxed);
            spliced += thread.spliced_bytes.load(Ordering::Relaxed);
            panics += thread.panics.load(Ordering::Relaxed);
        }
        *self.turns.lock() = turns;
        for (state, count) in [("borrowed", pipes), ("idle", idle)] {
            self.pipes.with_label_values(&[state]).set(gauge(count));
        }
        self.rest_bytes.set(gauge(rest));
        self.pipes_exhausted.is_now(exhausted);
        let spun_s = spun_us as f64 / 1e6;
        self.spun.inc_by((spun_s - self.spun.get()).max(0.0));
        self.bytes.is_now(bytes);
        self.spliced_bytes.is_now(spliced);
        self.panics.is_now(panics);
    }
}

const TURNS: &[Family] = &[
    Family {
        name: "culvert_relay_turnaround_seconds",
        kind: Kind::Histogram,
        help: "From readiness of a socket to the end of the engine's turn that moved its bytes.",
        labels: &["direction", "datapath"],
    },
    Family {
        name: "culvert_engine_turn_seconds",
        kind: Kind::Histogram,
        help: "Rounds of an engine thread over all pairs that had something to do.",
        labels: &[],
    },
    Family {
        name: "culvert_relay_datapath_switches_total",
        kind: Kind::Counter,
        help: "Directions of pairs that changed between copying and splicing.",
        labels: &["from", "to"],
    },
];

/// Registers what is told of turns.
fn tell_turns(m: &Metrics) -> Arc<Mutex<TurnsRead>> {
    let turns: Arc<Mutex<TurnsRead>> = Arc::default();
    let read = turns.clone();
    m.collect(
        TURNS,
        Box::new(move |told| {
            let read = *read.lock();
            let [turnaround, rounds, switches] = told else {
                return;
            };
            for (direction, row) in DIRECTIONS.iter().zip(read.turnaround) {
                for (datapath, spread) in DATAPATHS.iter().zip(row) {
                    turnaround.spread(&[direction, datapath], &spread);
                }
            }
            rounds.spread(&[], &read.round);
            let [copy, splice] = DATAPATHS;
            let [to_splice, back] = read.switches;
            switches.integer(&[copy, splice], to_splice);
            switches.integer(&[splice, copy], back);
        }),
    );
    turns
}

impl Followed {
    fn new(counter: IntCounter) -> Self {
        Self {
            counter,
            seen: AtomicU64::new(0),
        }
    }

    fn is_now(&self, total: u64) {
        let before = self.seen.swap(total, Ordering::Relaxed);
        self.counter.inc_by(total.saturating_sub(before));
    }
}
