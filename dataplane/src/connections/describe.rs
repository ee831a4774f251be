//! Connections and sessions as JSON. What the tier cannot tell is `null`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use culvert_observe::{Observer, Residence, Tier};

use super::Candidate;
use super::read::LegRead;
use crate::flow::lives::Shown;
use crate::sessions::Session;

/// One connection; `leg` names the only leg that is wanted.
pub fn connection(observer: &Observer, candidate: &Candidate, leg: Option<&str>) -> Value {
    let flow = &candidate.flow;
    let (age, pace) = (flow.began.elapsed(), flow.pace());
    let shown = flow.shown();
    let slot = shown.and_then(|shown| *shown.pair.as_ref()?.1.lock());
    let residence = slot.and_then(|slot| observer.residence(slot));
    let moved = shown.map_or([0; 2], Shown::bytes);
    let peers = [Some(flow.peer), shown.and_then(|shown| shown.channel)];
    let legs: Vec<Value> = ["client", "data"]
        .into_iter()
        .zip(peers)
        .enumerate()
        .filter(|(_, (name, peer))| peer.is_some() && leg.is_none_or(|wanted| wanted == *name))
        .map(|(role, (name, peer))| {
            let read = candidate.read.as_ref();
            let read = read.and_then(|read| read.legs[role].as_ref());
            let mut told = json!({
                "leg": name,
                "role": role,
                "peer": peer.map(|peer| peer.to_string()),
                "rx_bytes": moved[role],
                "tx_bytes": moved[1 - role],
                "rx_rate": pace.rates[role].round(),
                "tx_rate": pace.rates[1 - role].round(),
            });
            add(&mut told, kernel(observer, read));
            told
        })
        .collect();
    json!({
        "id": flow.conn.to_string(),
        "cluster": flow.cluster.state.id.as_str(),
        "service": &*flow.service,
        "mode": flow.origin.mode(),
        "datapath": shown.map(datapath),
        "state": if shown.is_some() { "established" } else { "opening" },
        "age_s": age.as_secs_f64(),
        "idle_s": pace.moved.elapsed().as_secs_f64(),
        "residence": residence.map(|[to_service, to_client]| json!({
            "to_service": residence_of(&to_service),
            "to_client": residence_of(&to_client),
        })),
        "window_full_pct": shown.map(|shown| full(shown, age)),
        "legs": legs,
    })
}

/// How its bytes move: in the engine, as they did so far.
fn datapath(shown: &Shown) -> &'static str {
    match shown.pair {
        Some(_) if shown.live.spliced.load(Ordering::Relaxed) == 0 => "copy",
        _ => shown.datapath,
    }
}

/// The part of its life in which bytes waited for room, in the worse direction.
fn full(shown: &Shown, age: Duration) -> f64 {
    let stalled = shown.live.stalled_ns.each_ref();
    let worst = stalled.map(|ns| ns.load(Ordering::Relaxed));
    let worst = worst.into_iter().max().unwrap_or(0) as f64 / 1e9;
    (worst / age.as_secs_f64().max(1e-3) * 1000.0).round() / 10.0
}

fn residence_of(residence: &Residence) -> Value {
    json!({
        "p50_us": residence.p50_us,
        "p99_us": residence.p99_us,
        "samples": residence.samples,
    })
}

/// What the sockets tell.
fn kernel(observer: &Observer, read: Option<&LegRead>) -> Value {
    let totals = read.map(|read| read.totals);
    let counted = observer.tier() >= Tier::Sockops;
    let stat = read.and_then(|read| read.stat).filter(|_| counted);
    let rtts = stat.filter(|stat| stat.rtt_n > 0);
    let cwnd_us = totals.map(|it| {
        it.busy_us
            .saturating_sub(it.rwnd_us)
            .saturating_sub(it.sndbuf_us)
    });
    json!({
        "srtt_us": totals.map(|it| it.rtt_us),
        "rtt_min_us": rtts.map(|it| it.rtt_min_us).or(totals.map(|it| it.rtt_min_us)),
        "rtt_avg_us": rtts.map(|it| it.rtt_sum_us / u64::from(it.rtt_n)),
        "rtt_samples": stat.map(|it| it.rtt_n),
        "retrans": totals.map(|it| it.retransmitted),
        "rto": stat.map(|it| it.rto),
        "unsent_bytes": totals.map(|it| it.bytes_unsent),
        "limited_ms": totals.map(|it| json!({
            "rwnd": it.rwnd_us / 1000,
            "sndbuf": it.sndbuf_us / 1000,
            "cwnd": cwnd_us.map(|us| us / 1000),
        })),
    })
}

fn add(to: &mut Value, more: Value) {
    if let (Some(to), Value::Object(more)) = (to.as_object_mut(), more) {
        to.extend(more);
    }
}

/// The session of an agent.
pub fn session(session: &Session) -> Value {
    let mux = session.carrier.mux_stats();
    json!({
        "id": session.key.epoch.0,
        "cluster": session.key.cluster.as_str(),
        "instance": session.key.instance.to_string(),
        "carrier": session.facts.kind.as_str(),
        "peer": session.facts.peer.to_string(),
        "version": session.facts.version,
        "age_s": session.facts.began.elapsed().as_secs_f64(),
        "rtt_ms": session.carrier.rtt_ms(),
        "streams": session.live(),
        "streams_max": session.streams_max(),
        "stalled": mux.streams_stalled,
        "memory_bytes": mux.memory_bytes,
        "state": if session.carrier.is_draining() { "draining" } else { "established" },
    })
}
