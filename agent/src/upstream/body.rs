//! Bodies on their way: frames pass as they are, trailers of requests lose protected names.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::pool::Lease;
use crate::serve::head;

/// How long an upstream may leave `Expect: 100-continue` unanswered before the
/// body is sent all the same (RFC 9110 10.1.1 asks for a bound).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// The request body towards the upstream.
pub struct RequestBody {
    /// `None`: the request has no body.
    inner: Option<Incoming>,
    held: Option<Held>,
}

struct Held {
    gate: Arc<Gate>,
    patience: Pin<Box<Sleep>>,
}

impl RequestBody {
    /// Streams `inner` at once.
    #[must_use]
    pub fn new(inner: Incoming) -> Self {
        let inner = (!inner.is_end_stream()).then_some(inner);
        Self { inner, held: None }
    }

    /// The body of a request that has none.
    #[must_use]
    pub fn none() -> Self {
        Self {
            inner: None,
            held: None,
        }
    }

    /// Streams `inner` once `gate` opens, or after [`CONTINUE_WAIT`].
    #[must_use]
    pub fn held(inner: Incoming, gate: Arc<Gate>) -> Self {
        let patience = Box::pin(tokio::time::sleep(CONTINUE_WAIT));
        Self {
            inner: Some(inner),
            held: Some(Held { gate, patience }),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(held) = &mut self.held {
            match ready!(held.gate.poll(cx, held.patience.as_mut())) {
                Ok(()) => self.held = None,
                Err(why) => return Poll::Ready(Some(Err(why.into()))),
            }
        }
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        Poll::Ready(frame.map(|frame| Ok(head::clean_trailers(frame?))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let none = || SizeHint::with_exact(0);
        self.inner.as_ref().map_or_else(none, Body::size_hint)
    }
}

/// Opens when the upstream asks for the body; shuts when it has answered
/// without asking.
#[derive(Default)]
pub struct Gate {
    state: AtomicU8,
    waker: AtomicWaker,
}

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const SHUT: u8 = 2;

/// The upstream answered without wanting the body.
#[derive(Debug, thiserror::Error)]
#[error("the target answered without taking the request body")]
struct Withdrawn;

impl Gate {
    /// Lets the body go. `false`: it went before.
    pub fn open(&self) -> bool {
        self.settle(OPEN)
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// Ends a body that is still held with an error, and so its connection.
    pub fn shut(&self) {
        self.settle(SHUT);
    }

    fn settle(&self, to: u8) -> bool {
        let settled = self
            .state
            .compare_exchange(CLOSED, to, Ordering::AcqRel, Ordering::Acquire);
        if settled.is_ok() {
            self.waker.wake();
        }
        settled.is_ok()
    }

    fn poll(&self, cx: &mut Context<'_>, patience: Pin<&mut Sleep>) -> Poll<Result<(), Withdrawn>> {
        self.waker.register(cx.waker());
        match self.state.load(Ordering::Acquire) {
            OPEN => return Poll::Ready(Ok(())),
            SHUT => return Poll::Ready(Err(Withdrawn)),
            _ => ready!(patience.poll(cx)),
        }
        self.open();
        Poll::Ready(Ok(()))
    }
}

/// The upstream's answer; gives its connection back to the pool at the end.
pub struct ResponseBody {
    inner: Incoming,
    lease: Option<Lease>,
}

impl ResponseBody {
    pub(super) fn new(inner: Incoming, lease: Lease) -> Self {
        let mut body = Self {
            inner,
            lease: Some(lease),
        };
        if body.inner.is_end_stream() {
            body.finish();
        }
        body
    }

    /// The empty body of an accepted upgrade; its connection is no longer HTTP.
    pub(super) fn of_upgrade(inner: Incoming) -> Self {
        Self { inner, lease: None }
    }

    fn finish(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Err(_)) => self.lease = None,
            None => self.finish(),
            Some(Ok(frame)) if frame.is_trailers() || self.inner.is_end_stream() => self.finish(),
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
