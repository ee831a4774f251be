//! `GET /connections` of the admin port: the relayed connections of this data
//! plane, one by one, and the sessions of its agents.
//!
//! `query` is what may be asked, `read` the look at the sockets, by the engine
//! threads that own them, `describe` the answer's text.

mod describe;
mod query;
mod read;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use parking_lot::Mutex;
use serde_json::json;

use culvert_telemetry::admin::{Answer, text};

use crate::flow::lives::Flow;
use crate::plane::Plane;
use query::{Query, Sort};
use read::Read;

/// Connections whose sockets are looked at for one answer.
const SCANNED_MAX: usize = 4096;
/// An answer is good for this long.
const KEPT: Duration = Duration::from_secs(1);

/// Answers one request at a time.
pub struct Connections {
    busy: tokio::sync::Mutex<()>,
    last: Mutex<Option<(String, Instant, String)>>,
}

/// A connection that may be listed.
struct Candidate {
    flow: Arc<Flow>,
    read: Option<Read>,
}

impl Connections {
    /// Nothing was asked yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            busy: tokio::sync::Mutex::default(),
            last: Mutex::default(),
        })
    }

    /// The list that `query` asks for.
    pub async fn list(&self, plane: &Plane, query: String) -> Answer {
        let asked = match Query::parse(&query) {
            Ok(asked) => asked,
            Err(why) => return text(StatusCode::BAD_REQUEST, "text/plain", why + "\n"),
        };
        if let Some(kept) = self.kept(&query) {
            return text(StatusCode::OK, "application/json", kept);
        }
        let Ok(_turn) = self.busy.try_lock() else {
            let why = "another list is being made; ask again in a second\n".to_owned();
            return text(StatusCode::TOO_MANY_REQUESTS, "text/plain", why);
        };
        let list = make(plane, &asked).await;
        *self.last.lock() = Some((query, Instant::now(), list.clone()));
        text(StatusCode::OK, "application/json", list)
    }

    fn kept(&self, query: &str) -> Option<String> {
        let last = self.last.lock();
        let (of, at, list) = last.as_ref()?;
        (of == query && at.elapsed() < KEPT).then(|| list.clone())
    }
}

async fn make(plane: &Plane, asked: &Query) -> String {
    let observer = &plane.metrics.sight.observer;
    let mut all: Vec<Candidate> = plane
        .flows
        .list()
        .into_iter()
        .filter(|flow| asked.wants(flow))
        .map(|flow| Candidate { flow, read: None })
        .collect();
    let total = all.len();
    if asked.sort.reads_sockets() {
        // The fast ones are looked at first.
        sort(plane, &mut all, Sort::Rate);
        all.truncate(SCANNED_MAX);
        read::look(observer, &mut all).await;
        sort(plane, &mut all, asked.sort);
    } else {
        sort(plane, &mut all, asked.sort);
    }
    let scanned = all.len();
    all.truncate(asked.limit);
    if !asked.sort.reads_sockets() {
        read::look(observer, &mut all).await;
    }
    let shown: Vec<_> = all
        .iter()
        .map(|candidate| describe::connection(observer, candidate, asked.leg.as_deref()))
        .collect();
    let sessions = plane.sessions.list(usize::MAX);
    let wanted = |session: &&Arc<crate::sessions::Session>| {
        let cluster = session.key.cluster.as_str();
        asked
            .cluster
            .as_ref()
            .is_none_or(|wanted| wanted == cluster)
    };
    let sessions = sessions.iter().filter(wanted).take(asked.limit);
    json!({
        "apiVersion": "culvert.dev/v1",
        "kind": "ConnectionList",
        "tier": observer.tier().name(),
        "total": total,
        "scanned": scanned,
        "truncated": total > scanned,
        "requestsInFlight": plane.in_flight(),
        "connections": shown,
        "sessions": sessions.map(|session| describe::session(session)).collect::<Vec<_>>(),
    })
    .to_string()
}

fn sort(plane: &Plane, all: &mut [Candidate], by: Sort) {
    let observer = &plane.metrics.sight.observer;
    // Once for each: they move while they are sorted.
    all.sort_by_cached_key(|candidate| std::cmp::Reverse(by.key(observer, candidate)));
}
