//! `POST /admin/trace` of the admin port: the trace programs, linked for a while.
//!
//! The answer comes when the time is over and says what was seen in it. Whoever asked and hangs
//! up before ends the trace: the future that holds it is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::Instant;

use culvert_observe::{ClusterIndex, Histogram, Kind, Leg, Reading, TraceError, Traced, Tracing};
use culvert_telemetry::admin::{Answer, text};

use crate::flow::lives::Flow;
use crate::plane::Plane;

/// How long a trace runs when nobody says, and at most.
const TIME_DEFAULT: Duration = Duration::from_secs(30);
const TIME_MAX: Duration = Duration::from_secs(600);
/// Longest query that is looked at.
const QUERY_BYTES_MAX: usize = 512;
/// Connections of the engine that are marked at once, newest first: each costs its thread a
/// microsecond. Those that come later are marked as they come.
const MARKED_MAX: usize = 16_384;
/// Engine threads have this long to mark.
const MARK_MAX: Duration = Duration::from_millis(500);

/// What was asked.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    cluster: Option<String>,
    time: Duration,
}

impl Asked {
    /// Reads the part of a URL behind `?`.
    fn parse(query: &str) -> Result<Self, String> {
        if query.len() > QUERY_BYTES_MAX {
            return Err(format!(
                "the query has {} bytes; {QUERY_BYTES_MAX} are read",
                query.len()
            ));
        }
        let mut asked = Self {
            cluster: None,
            time: TIME_DEFAULT,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("cluster", name) => asked.cluster = Some(name.to_owned()),
                ("seconds", count) => {
                    let seconds = count.parse().ok().map(Duration::from_secs);
                    let fits = |time: &Duration| !time.is_zero() && *time <= TIME_MAX;
                    asked.time = seconds.filter(fits).ok_or_else(|| {
                        let most = TIME_MAX.as_secs();
                        format!("seconds {count:?} is no number from 1 to {most}")
                    })?;
                }
                (key, _) => return Err(format!("{key:?} is none of cluster, seconds")),
            }
        }
        Ok(asked)
    }
}

/// Traces as `query` asks, and tells what was seen.
pub async fn run(plane: Arc<Plane>, query: String) -> Answer {
    match trace(&plane, &query).await {
        Ok(seen) => text(StatusCode::OK, "application/json", seen.to_string()),
        Err((status, why)) => text(status, "text/plain", why + "\n"),
    }
}

async fn trace(plane: &Arc<Plane>, query: &str) -> Result<Value, (StatusCode, String)> {
    let asked = Asked::parse(query).map_err(|why| (StatusCode::BAD_REQUEST, why))?;
    let of = traced(plane, asked.cluster.as_deref())?;
    let observer = &plane.metrics.sight.observer;
    let before = Seen::read(&observer.read());
    let running = observer.begin_trace(of).map_err(|why| {
        let status = match why {
            TraceError::Unavailable(_) => StatusCode::NOT_IMPLEMENTED,
            TraceError::Busy => StatusCode::CONFLICT,
            TraceError::Refused(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, why.to_string())
    })?;
    let running = Running {
        plane: plane.clone(),
        of,
        tracing: Some(running),
    };
    let marked = running.mark().await;
    tracing::info!(
        cluster = asked.cluster,
        seconds = asked.time.as_secs(),
        marked,
        "a trace runs: every socket of this host pays for it"
    );
    let began = Instant::now();
    tokio::select! {
        () = tokio::time::sleep(asked.time) => {}
        () = plane.refusing() => {}
    }
    let seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let seen = Seen::read(&observer.read()).since(&before);
    drop(running);
    Ok(json!({
        "apiVersion": "culvert.dev/v1",
        "kind": "Trace",
        "cluster": asked.cluster,
        "seconds": seconds,
        "marked": marked,
        "receive_queue_wait": seen.waits(),
        "resets": seen.resets(),
    }))
}

fn traced(plane: &Plane, cluster: Option<&str>) -> Result<Traced, (StatusCode, String)> {
    let Some(name) = cluster else {
        return Ok(Traced::All);
    };
    let table = plane.table.load();
    let Some(cluster) = table.get(name) else {
        let why = format!("{name:?} is no cluster of this data plane's table");
        return Err((StatusCode::NOT_FOUND, why));
    };
    match cluster.metrics.seen.index {
        ClusterIndex::OVERFLOW => {
            let why = format!(
                "cluster {name} found no row of its own left; raise metrics.clusters_max, or trace all"
            );
            Err((StatusCode::CONFLICT, why))
        }
        index => Ok(Traced::Cluster(index)),
    }
}

/// A trace that runs; ends with the last of its sockets told so, also when nobody waits any more.
struct Running {
    plane: Arc<Plane>,
    of: Traced,
    tracing: Option<Tracing>,
}

impl Running {
    /// Marks the connections that the engine relays now; returns how many sockets are looked at.
    async fn mark(&self) -> usize {
        let (tell, told) = oneshot::channel::<()>();
        // Dropped with the last visit, which is when all are done.
        let tell = Arc::new(tell);
        let marked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        visit(&self.plane, self.of, {
            let marked = marked.clone();
            move |count| {
                let _ = &tell;
                marked.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
            }
        });
        let _ = tokio::time::timeout(MARK_MAX, told).await;
        marked.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.tracing.take());
        visit(&self.plane, self.of, |_| {});
    }
}

/// Has the sockets of pairs follow the trace, each on the thread that owns it, and tells how many
/// of each pair are looked at.
fn visit(plane: &Plane, of: Traced, tell: impl Fn(usize) + Clone + Send + 'static) {
    let observer = &plane.metrics.sight.observer;
    let mut flows = plane.flows.list();
    flows.retain(|flow| is_of(flow, of));
    flows.sort_by_key(|flow| std::cmp::Reverse(flow.began));
    for flow in flows.iter().take(MARKED_MAX) {
        let Some((handle, _)) = flow.shown().and_then(|shown| shown.pair.as_ref()) else {
            continue;
        };
        let (observer, tell) = (observer.clone(), tell.clone());
        handle.visit(move |sockets| {
            let looked_at = |socket| usize::from(observer.follow_trace(socket));
            tell(sockets.map(looked_at).into_iter().sum());
        });
    }
}

fn is_of(flow: &Flow, of: Traced) -> bool {
    match of {
        Traced::All => true,
        Traced::Cluster(index) => flow.cluster.metrics.seen.index == index,
    }
}

/// What traces counted so far.
struct Seen {
    waits: BTreeMap<String, Histogram>,
    resets: BTreeMap<(&'static str, String), u64>,
}

impl Seen {
    fn read(reading: &Reading<'_>) -> Self {
        let waits = reading.clusters().filter_map(|cluster| {
            let waited = cluster.histogram(Kind::RxWait)?;
            Some((cluster.name.to_owned(), waited))
        });
        let resets = reading
            .resets()
            .map(|(leg, reason, count): (Leg, _, _)| ((leg.label(), reason.into_owned()), count));
        Self {
            waits: waits.collect(),
            resets: resets.collect(),
        }
    }

    fn since(mut self, before: &Self) -> Self {
        for (cluster, waited) in &mut self.waits {
            if let Some(before) = before.waits.get(cluster) {
                waited.since(before);
            }
        }
        for (of, count) in &mut self.resets {
            *count = count.saturating_sub(before.resets.get(of).copied().unwrap_or(0));
        }
        self.waits.retain(|_, waited| waited.count() > 0);
        self.resets.retain(|_, count| *count > 0);
        self
    }

    fn waits(&self) -> Vec<Value> {
        let us = |seconds: f64| (seconds * 1e7).round() / 10.0;
        let waits = self.waits.iter().map(|(cluster, waited)| {
            let quantile = |per_mille| waited.quantile_s(per_mille).map(us);
            json!({
                "cluster": cluster,
                "samples": waited.count(),
                "mean_us": us(waited.sum_s() / waited.count() as f64),
                "p50_us": quantile(500),
                "p99_us": quantile(990),
            })
        });
        waits.collect()
    }

    fn resets(&self) -> Vec<Value> {
        let resets = self.resets.iter();
        let resets = resets
            .map(|((leg, reason), count)| json!({"leg": leg, "reason": reason, "count": count}));
        resets.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read_and_bounded() {
        let asked = Asked::parse("cluster=eu-1&seconds=600").unwrap();
        assert_eq!(asked.cluster.as_deref(), Some("eu-1"));
        assert_eq!(asked.time, TIME_MAX);
        assert_eq!(Asked::parse("").unwrap().time, TIME_DEFAULT);
        let long = "x".repeat(QUERY_BYTES_MAX + 1);
        for (query, part) in [
            ("seconds=0", "from 1 to 600"),
            ("seconds=601", "from 1 to 600"),
            ("seconds=-1", "from 1 to 600"),
            ("seconds", "from 1 to 600"),
            ("minutes=1", "none of cluster, seconds"),
            (&long, "are read"),
        ] {
            let why = Asked::parse(query).unwrap_err();
            assert!(why.contains(part), "{query}: {why}");
        }
    }

    #[test]
    fn only_what_was_seen_meanwhile_is_told() {
        let waited = |samples| {
            let mut waited = Histogram::EMPTY;
            waited.buckets[20] = samples;
            waited.sum_ns = samples * 30_000;
            waited
        };
        let of = |leg, reason: &str| (leg, reason.to_owned());
        let before = Seen {
            waits: [("a".to_owned(), waited(2)), ("b".to_owned(), waited(5))].into(),
            resets: [(of("client", "no_socket"), 7)].into(),
        };
        let now = Seen {
            waits: [("a".to_owned(), waited(6)), ("b".to_owned(), waited(5))].into(),
            resets: [
                (of("client", "no_socket"), 7),
                (of("data", "tcp_abort_on_close"), 1),
            ]
            .into(),
        };
        let seen = now.since(&before);
        let waits = seen.waits();
        assert_eq!(waits.len(), 1);
        assert_eq!(
            (&waits[0]["cluster"], &waits[0]["samples"]),
            (&json!("a"), &json!(4))
        );
        assert_eq!(waits[0]["mean_us"], 30.0);
        let resets = [json!({"leg": "data", "reason": "tcp_abort_on_close", "count": 1})];
        assert_eq!(seen.resets(), resets);
    }
}
