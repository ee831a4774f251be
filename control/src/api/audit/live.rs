//! `/audit/stream`: rows as they are recorded, as server-sent events.
//!
//! The id of an event is the number of its row: a client that comes back with
//! `Last-Event-ID` goes on behind it and misses none. Nothing is kept for a client:
//! it reads the store at its own pace, and one that does not read is dropped.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::sse::Event;
use axum::response::{IntoResponse as _, Response};
use tokio::time::{Instant, timeout};

use super::row::AuditRow;
use super::{AuditParams, scoped};
use crate::api::access::Principal;
use crate::api::body::Params;
use crate::api::live::{self, LAST_EVENT_ID, LIFE_MAX, Sending};
use crate::api::problem::ProblemBody;
use crate::api::{Problem, Shared};
use crate::audit::{Cause, Filter};
use crate::hub::{Follow, Hub};

/// Rows read at once.
const ROWS: u32 = 200;
/// Rows of other processes are looked for this often.
const LOOK: Duration = Duration::from_secs(1);

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
    let follow = live::following(&hub, &cause.actor.sub)?;
    let after = match last {
        Some(last) => last,
        None => hub.audit_newest().await?,
    };
    filter.limit = ROWS;
    let (rows, response) = live::stream();
    tokio::spawn(feed(hub, follow, filter, after, rows));
    Ok((scope, response).into_response())
}

/// Sends rows until the client is gone, too slow, or has had its time.
async fn feed(hub: Arc<Hub>, mut follow: Follow, filter: Filter, mut after: i64, rows: Sending) {
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
            if !rows.send(event).await {
                return;
            }
        }
        if !is_full {
            tokio::select! {
                () = rows.gone() => return,
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
