//! `/audit/stream`: rows as they are recorded, as server-sent events.
//!
//! The id of an event is the number of its row: a client that comes back with
//! `Last-Event-ID` goes on behind it and misses none. Nothing is kept for a client:
//! it reads the store at its own pace, and one that does not read is dropped.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::row::AuditRow;
use super::{AuditParams, scoped};
use crate::api::access::Principal;
use crate::api::body::Params;
use crate::api::problem::ProblemBody;
use crate::api::{Problem, Shared, kind};
use crate::audit::{Cause, Filter};
use crate::hub::{FOLLOWS_MAX, Follow, Hub};

/// A quiet stream carries a comment this often.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A client that takes no row for this long is dropped.
const STALL_MAX: Duration = Duration::from_secs(30);
/// A stream ends after this time: rights are looked at again when the client comes back.
const LIFE_MAX: Duration = Duration::from_secs(15 * 60);
/// Rows read at once.
const ROWS: u32 = 200;
/// Rows of other processes are looked for this often.
const LOOK: Duration = Duration::from_secs(1);
const LAST_EVENT_ID: &str = "last-event-id";

/// Rows as they are recorded, oldest first, as server-sent events named `audit`. `limit` and
/// `offset` do not apply.
#[utoipa::path(get, operation_id = "stream_audit", path = "/audit/stream", params(AuditParams,
        ("Last-Event-ID" = Option<String>, Header, description = "Number of the last row seen; also as `cursor`. Without it the stream begins with the next row.")),
    tag = "audit",
    responses(
        (status = OK, content_type = "text/event-stream", body = String, headers(("X-Audit-Scope" = String, description = "all, or self: only rows of the caller"))),
        (status = "default", body = ProblemBody)))]
pub(in crate::api) async fn stream(
    State(context): State<Shared>,
    Extension(cause): Extension<Arc<Cause>>,
    Extension(principal): Extension<Arc<Principal>>,
    headers: HeaderMap,
    Params(params): Params<AuditParams>,
) -> Result<Response, Problem> {
    let mut filter = params.filter()?;
    let scope = scoped(&mut filter, &cause, &principal);
    let last = match headers.get(LAST_EVENT_ID) {
        Some(id) => Some(number(id.to_str().unwrap_or_default())?),
        None => filter.before,
    };
    let hub = context.hub.clone();
    let follow = hub.follow_audit(&cause.actor.sub).ok_or_else(|| {
        let seen = format!("{} follows {FOLLOWS_MAX} streams", cause.actor.sub);
        Problem::new(&kind::TOO_MANY_STREAMS, seen, "close one, then try again")
            .retry_after(HEARTBEAT.as_secs())
    })?;
    let after = match last {
        Some(last) => last,
        None => hub.audit_newest().await?,
    };
    filter.limit = ROWS;
    let (rows, mut taken) = mpsc::channel(1);
    tokio::spawn(feed(hub, follow, filter, after, rows));
    let events = stream::poll_fn(move |cx| taken.poll_recv(cx));
    let beat = KeepAlive::new().interval(HEARTBEAT).text("beat");
    Ok((scope, Sse::new(events).keep_alive(beat)).into_response())
}

type Rows = mpsc::Sender<Result<Event, Infallible>>;

/// Sends rows until the client is gone, too slow, or has had its time.
async fn feed(hub: Arc<Hub>, mut follow: Follow, filter: Filter, mut after: i64, rows: Rows) {
    let end = Instant::now() + LIFE_MAX;
    while Instant::now() < end {
        let page = match hub.audit_since(&filter, after).await {
            Ok(page) => page,
            Err(error) => {
                // The client comes back, and goes on where it was.
                return tracing::debug!(%error, "an audit stream ends");
            }
        };
        let is_full = page.len() == ROWS as usize;
        for row in page {
            after = row.seq;
            let event = Event::default().event("audit").id(after.to_string());
            let Ok(event) = event.json_data(AuditRow::from(row)) else {
                continue;
            };
            if !matches!(timeout(STALL_MAX, rows.send(Ok(event))).await, Ok(Ok(()))) {
                return;
            }
        }
        if !is_full {
            tokio::select! {
                () = rows.closed() => return,
                _ = timeout(LOOK, follow.news()) => {}
            }
        }
    }
}

fn number(text: &str) -> Result<i64, Problem> {
    text.trim().parse().map_err(|_| {
        let why = format!("is {text:?}; the number of a row is wanted");
        Problem::field("Last-Event-ID", why)
    })
}
