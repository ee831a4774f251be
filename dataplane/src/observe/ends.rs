//! The thread that hears of connections that closed: the kernel's records of
//! them, and what the process itself knows of relays.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use culvert_observe::{Close, ConnId, Leg, Observer, Tier};
use culvert_telemetry::metrics::{ClusterLabels, HistogramVec, IntCounterVec, Metrics as Registry};
use parking_lot::Mutex;

use super::flowlog::{Relay, Writer, line};
use super::socket::seconds;
use super::{Sight, flowlog};
use crate::config::{FlowLogConfig, FlowLogMode};

/// Between two drains of the kernel's records.
const DRAIN_INTERVAL: Duration = Duration::from_millis(250);
/// Between two looks at samples that nothing came of.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Relays that ended and were not heard of yet.
const RELAYS_MAX: usize = 8192;
/// Relays whose records are awaited.
const PENDING_MAX: usize = 16_384;
/// How long.
const PENDING_TIME: Duration = Duration::from_secs(2);

/// Takes what ended.
pub struct Mailbox {
    send: SyncSender<Relay>,
    receive: Mutex<Option<Receiver<Relay>>>,
    /// Somebody listens.
    is_open: AtomicBool,
    lines: IntCounterVec,
}

impl Mailbox {
    /// Nobody listens yet.
    pub fn new(r: &Registry) -> Self {
        let (send, receive) = sync_channel(RELAYS_MAX);
        Self {
            send,
            receive: Mutex::new(Some(receive)),
            is_open: AtomicBool::new(false),
            lines: r.counter_vec(
                "culvert_flowlog_lines_total",
                "Lines of the flow log: written, or dropped for want of room or over 1,000 in a second.",
                &["outcome"],
            ),
        }
    }

    /// A relay ended; never waits.
    pub fn put(&self, relay: impl FnOnce() -> Relay) {
        if self.is_open.load(Ordering::Relaxed) && self.send.try_send(relay()).is_err() {
            self.lines.with_label_values(&["dropped"]).inc();
        }
    }
}

/// Starts the thread where there is something to hear; it ends with `sight`.
///
/// # Errors
/// The operating system's.
pub fn start(
    sight: &Sight,
    labels: &Arc<ClusterLabels>,
    config: FlowLogConfig,
) -> io::Result<Option<JoinHandle<()>>> {
    let logs = config.mode != FlowLogMode::Off;
    if !logs && sight.observer.tier() < Tier::Sockops {
        return Ok(None);
    }
    let Some(receive) = sight.ends.receive.lock().take() else {
        return Ok(None);
    };
    let writer = logs
        .then(|| Writer::start(sight.ends.lines.clone()))
        .transpose()?;
    sight.ends.is_open.store(logs, Ordering::Relaxed);
    let listener = Listener {
        observer: sight.observer.clone(),
        labels: labels.clone(),
        first_byte: sight.first_byte.clone(),
        connect: sight.connect.clone(),
        receive,
        pending: HashMap::new(),
        config,
        writer,
    };
    let thread = std::thread::Builder::new()
        .name("observer".to_owned())
        .spawn(move || listener.run())?;
    Ok(Some(thread))
}

struct Listener {
    observer: Observer,
    labels: Arc<ClusterLabels>,
    first_byte: HistogramVec,
    connect: HistogramVec,
    receive: Receiver<Relay>,
    pending: HashMap<ConnId, Pending>,
    config: FlowLogConfig,
    writer: Option<Writer>,
}

/// What is known of a relay that ended.
struct Pending {
    relay: Option<Relay>,
    records: [Option<Close>; 2],
    since: Instant,
}

impl Listener {
    fn run(mut self) {
        let mut swept = Instant::now();
        loop {
            std::thread::sleep(DRAIN_INTERVAL);
            let goes_on = self.hear();
            self.settle(!goes_on);
            if !goes_on {
                return;
            }
            if swept.elapsed() >= SWEEP_INTERVAL {
                swept = Instant::now();
                self.observer.sweep();
            }
        }
    }

    /// Whether there will be more to hear.
    fn hear(&mut self) -> bool {
        let observer = self.observer.clone();
        for close in observer.closes() {
            self.closed(&close);
        }
        loop {
            match self.receive.try_recv() {
                Ok(relay) => {
                    let id = relay.id;
                    if let Some(pending) = self.pending(id) {
                        pending.relay = Some(relay);
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn closed(&mut self, close: &Close) {
        let Some(leg) = Leg::of(close.leg) else {
            return;
        };
        let name = self.observer.cluster_name(close.cluster);
        let cluster = self
            .labels
            .histogram(name.as_deref().unwrap_or("_unrouted"));
        let is_near = matches!(leg, Leg::Client | Leg::Pair) && close.role == 0;
        if is_near && close.t_first_rx > 0 && close.t_first_tx > close.t_first_rx {
            let took_s = seconds(close.t_first_tx - close.t_first_rx);
            self.first_byte
                .with_label_values(&[cluster])
                .observe(took_s);
        }
        if close.t_conn > 0 && close.t_est > close.t_conn {
            let took_s = seconds(close.t_est - close.t_conn);
            let labels = [cluster, leg.label()];
            self.connect.with_label_values(&labels).observe(took_s);
        }
        let is_relayed = matches!(leg, Leg::Client | Leg::Data | Leg::Pair);
        if self.writer.is_some() && is_relayed && close.conn_id > 0 {
            let role = usize::from(close.role & 1);
            if let Some(pending) = self.pending(ConnId::of_record(close.conn_id)) {
                pending.records[role] = Some(*close);
            }
        }
    }

    fn pending(&mut self, id: ConnId) -> Option<&mut Pending> {
        if self.pending.len() >= PENDING_MAX && !self.pending.contains_key(&id) {
            if let Some(writer) = &self.writer {
                writer.dropped();
            }
            return None;
        }
        Some(self.pending.entry(id).or_insert_with(|| Pending {
            relay: None,
            records: [None; 2],
            since: Instant::now(),
        }))
    }

    /// Writes the lines of relays of which everything is known, or will not be.
    fn settle(&mut self, is_last: bool) {
        let Some(writer) = &mut self.writer else {
            return;
        };
        let in_kernel = self.observer.tier() >= Tier::Sockops;
        let (config, slow) = (self.config, self.config.mode == FlowLogMode::Slow);
        self.pending.retain(|_, pending| {
            let waited = pending.since.elapsed() >= PENDING_TIME || is_last;
            let Some(relay) = &pending.relay else {
                return !waited;
            };
            let is_whole = relay.awaits(&pending.records) == 0 || !in_kernel;
            if !is_whole && !waited {
                return true;
            }
            if !slow || flowlog::is_slow(relay, &pending.records, config.slow) {
                writer.write(line(relay, &pending.records));
            }
            false
        });
    }
}
