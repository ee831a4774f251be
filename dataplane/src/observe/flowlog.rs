//! One JSON line on standard output for each relayed connection that ended.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use culvert_engine::legs::Leg;
use culvert_observe::{Close, CloseKind, ConnId};
use culvert_proto::close::{CloseReason, Side};
use culvert_telemetry::log::rfc3339;
use culvert_telemetry::metrics::IntCounterVec;
use serde_json::{Value, json};

/// Lines in a second; further ones are dropped and counted.
const LINES_MAX: u32 = 1000;
/// Lines that wait for a slow reader of standard output.
const QUEUE_MAX: usize = 1024;
/// A tick of residences in the kernel's records, in ns.
const TICK_NS: u64 = 64;

/// What the process itself knows of a relay that ended.
#[derive(Debug, Clone)]
pub struct Relay {
    /// Its number.
    pub id: ConnId,
    /// When.
    pub at: SystemTime,
    /// Whose it was.
    pub cluster: Box<str>,
    /// What led there.
    pub mode: &'static str,
    /// How its bytes moved.
    pub datapath: &'static str,
    /// Why it ended.
    pub reason: CloseReason,
    /// How long it lived.
    pub life: Duration,
    /// From the client's connection to the first byte back.
    pub first_byte: Option<Duration>,
    /// Bytes delivered to the service and to the client.
    pub bytes: [u64; 2],
    /// The connections it was made of, with their peers where they are known.
    pub legs: [Option<(Leg, Option<SocketAddr>)>; 2],
}

impl Relay {
    /// Records that are missing.
    pub fn awaits(&self, records: &[Option<Close>; 2]) -> usize {
        let legs = self.legs.iter().zip(records);
        legs.filter(|(leg, record)| leg.is_some() && record.is_none())
            .count()
    }
}

/// Whether anything of a relay took longer than it should.
pub fn is_slow(relay: &Relay, records: &[Option<Close>; 2], limit: Duration) -> bool {
    let limit_us = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
    let slow = |close: &Close| {
        let residence_us = u64::from(close.res_max) * TICK_NS / 1000;
        let rtt_us = close.rtt_sum_us / u64::from(close.rtt_n.max(1));
        let connect_us = match close.t_conn {
            0 => 0,
            began => close.t_est.saturating_sub(began) / 1000,
        };
        residence_us.max(rtt_us).max(connect_us) >= limit_us
    };
    records.iter().flatten().any(slow) || relay.first_byte.is_some_and(|took| took >= limit)
}

/// The line of a relay.
pub fn line(relay: &Relay, records: &[Option<Close>; 2]) -> String {
    let legs: Vec<Value> = relay
        .legs
        .iter()
        .zip(records)
        .zip([0, 1])
        .filter_map(|((leg, record), role)| leg.map(|leg| describe(leg, record, relay, role)))
        .collect();
    let first_byte = records[0]
        .filter(|it| it.t_first_rx > 0 && it.t_first_tx > it.t_first_rx)
        .map(|it| Duration::from_nanos(it.t_first_tx - it.t_first_rx))
        .or(relay.first_byte);
    json!({
        "ts": rfc3339(relay.at),
        "id": relay.id.to_string(),
        "cluster": relay.cluster,
        "mode": relay.mode,
        "datapath": relay.datapath,
        "reason": relay.reason.as_str(),
        "closer": closer(relay, records),
        "duration_s": relay.life.as_secs_f64(),
        "first_byte_ms": first_byte.map(|took| took.as_secs_f64() * 1e3),
        "to_service": relay.bytes[0],
        "to_client": relay.bytes[1],
        "legs": legs,
    })
    .to_string()
}

fn describe(
    (leg, peer): (Leg, Option<SocketAddr>),
    record: &Option<Close>,
    relay: &Relay,
    role: usize,
) -> Value {
    let peer = peer.map(|peer| peer.to_string());
    let Some(close) = record else {
        let (rx, tx) = (relay.bytes[role], relay.bytes[1 - role]);
        return json!({"leg": leg.as_str(), "peer": peer, "rx": rx, "tx": tx, "kernel": false});
    };
    json!({
        "leg": leg.as_str(),
        "peer": peer,
        "rx": close.rx_bytes,
        "tx": close.tx_bytes,
        "rtt_min_us": close.rtt_min_us,
        "rtt_avg_us": close.rtt_sum_us / u64::from(close.rtt_n.max(1)),
        "srtt_us": close.srtt_us,
        "retrans": close.retrans,
        "rto": close.rto,
        "unacked": close.unacked,
        "residence_ewma_us": u64::from(close.res_ewma) * TICK_NS / 1000,
        "residence_max_us": u64::from(close.res_max) * TICK_NS / 1000,
        "kernel": true,
    })
}

/// Which side ended it first.
fn closer(relay: &Relay, records: &[Option<Close>; 2]) -> &'static str {
    let first_fin = |role: usize| {
        let kind = records[role].and_then(|close| CloseKind::of(close.kind));
        kind == Some(CloseKind::RemoteFin)
    };
    match (relay.reason, relay.reason.side()) {
        (CloseReason::Finished, _) => match (first_fin(0), first_fin(1)) {
            (true, false) => "client",
            (false, true) => "service",
            _ => "unknown",
        },
        (_, Side::Client) => "client",
        (_, Side::Upstream | Side::Agent) => "service",
        _ => "hub",
    }
}

/// Writes lines, so that who hands them over never waits for their reader.
pub struct Writer {
    send: SyncSender<String>,
    lines: IntCounterVec,
    second: (Instant, u32),
}

impl Writer {
    /// Starts its thread, which ends with it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start(lines: IntCounterVec) -> io::Result<Self> {
        let (send, receive) = sync_channel::<String>(QUEUE_MAX);
        let written = lines.with_label_values(&["written"]);
        std::thread::Builder::new()
            .name("flowlog".to_owned())
            .spawn(move || {
                for line in receive {
                    if writeln!(io::stdout().lock(), "{line}").is_ok() {
                        written.inc();
                    }
                }
            })?;
        Ok(Self {
            send,
            lines,
            second: (Instant::now(), 0),
        })
    }

    /// Hands a line over, or drops it.
    pub fn write(&mut self, line: String) {
        if self.second.0.elapsed() >= Duration::from_secs(1) {
            self.second = (Instant::now(), 0);
        }
        self.second.1 += 1;
        if self.second.1 > LINES_MAX || self.send.try_send(line).is_err() {
            self.dropped();
        }
    }

    /// A line is missing.
    pub fn dropped(&self) {
        self.lines.with_label_values(&["dropped"]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(reason: CloseReason) -> Relay {
        Relay {
            id: ConnId::of_sequence(5),
            at: SystemTime::UNIX_EPOCH,
            cluster: "eu\"1\n".into(),
            mode: "tcp",
            datapath: "splice",
            reason,
            life: Duration::from_millis(1500),
            first_byte: Some(Duration::from_millis(8)),
            bytes: [10, 20],
            legs: [Some((Leg::Client, None)), Some((Leg::Data, None))],
        }
    }

    #[test]
    fn a_line_names_both_legs_and_what_is_missing() {
        let close = Close {
            rx_bytes: 10,
            rtt_sum_us: 300,
            rtt_n: 2,
            res_max: 1000,
            kind: CloseKind::RemoteFin as u8,
            ..Close::default()
        };
        let (relay, records) = (relay(CloseReason::Finished), [Some(close), None]);
        assert_eq!(relay.awaits(&records), 1);
        let text = line(&relay, &records);
        assert!(!text.contains('\n'), "one line: {text}");
        let told: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(told["id"], "000000000000000a");
        assert_eq!(told["cluster"], "eu\"1\n");
        assert_eq!(told["closer"], "client");
        assert_eq!(told["legs"][0]["rtt_avg_us"], 150);
        assert_eq!(told["legs"][0]["residence_max_us"], 64);
        assert_eq!(told["legs"][1]["kernel"], false);
        assert_eq!(told["legs"][1]["rx"], 20);
    }

    #[test]
    fn slow_is_what_took_longer_in_the_relay_on_the_path_or_to_the_first_byte() {
        let fast = relay(CloseReason::ClientReset);
        let limit = Duration::from_millis(10);
        assert!(!is_slow(&fast, &[None, None], limit));
        let slow = Close {
            res_max: 10_000 * 1000 / 64,
            ..Close::default()
        };
        assert!(is_slow(&fast, &[None, Some(slow)], limit));
        assert!(is_slow(&fast, &[None, None], Duration::from_millis(8)));
        assert_eq!(closer(&fast, &[None, None]), "client");
    }
}
