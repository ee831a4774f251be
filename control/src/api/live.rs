//! What streams of server-sent events have in common.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Problem, kind};
use crate::hub::{FOLLOWS_MAX, Follow, Hub};

/// A stream ends after this time: rights are looked at again when the client comes back.
pub(super) const LIFE_MAX: Duration = Duration::from_secs(15 * 60);
/// Where a client says what it has seen.
pub(super) const LAST_EVENT_ID: &str = "last-event-id";
/// A quiet stream carries a comment this often.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A client that takes no event for this long is dropped.
const STALL_MAX: Duration = Duration::from_secs(30);

/// The sending side of a stream.
pub(super) struct Sending(mpsc::Sender<Result<Event, Infallible>>);

/// One more stream of `user`, as long as it is held.
pub(super) fn following(hub: &Hub, user: &str) -> Result<Follow, Problem> {
    hub.stream(user).ok_or_else(|| {
        let seen = format!("{user} follows {FOLLOWS_MAX} streams, or all follow too many");
        Problem::new(&kind::TOO_MANY_STREAMS, seen, "close one, then try again")
            .retry_after(HEARTBEAT.as_secs())
    })
}

/// A stream, and what is put into it. Nothing is kept for a client that does not read.
pub(super) fn stream() -> (Sending, Response) {
    let (events, mut taken) = mpsc::channel(1);
    let events_out = stream::poll_fn(move |cx| taken.poll_recv(cx));
    let beat = KeepAlive::new().interval(HEARTBEAT).text("beat");
    let response = Sse::new(events_out).keep_alive(beat).into_response();
    (Sending(events), response)
}

impl Sending {
    /// Puts one in; false when the client is gone or does not read.
    pub(super) async fn send(&self, event: Event) -> bool {
        matches!(timeout(STALL_MAX, self.0.send(Ok(event))).await, Ok(Ok(())))
    }

    /// Resolves when the client is gone.
    pub(super) async fn gone(&self) {
        self.0.closed().await;
    }
}
