//! The body of an answer on its way from the agent to the client.

use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use culvert_proto::close::CloseReason;

use super::audited::Bulk;
use super::body::BodyCut;
use super::exchange::{Exchange, Piece};
use super::head::response_trailer_passes;
use super::tracked::{Meter, Tracked};
use crate::sessions::StreamSlot;

/// A body streamed from an agent, with everything its request holds.
pub struct Relayed {
    exchange: Exchange,
    length: Option<u64>,
    left: u64,
    trailers: bool,
    ended: bool,
    tracked: Tracked,
    meter: Meter,
    slot: StreamSlot,
    bulk: Option<Box<Bulk>>,
    /// A piece that waits until it is recorded that the answer is large.
    held: Option<Bytes>,
}

impl Relayed {
    /// The body after the head of `exchange`; `trailers` when the client takes them.
    pub fn new(
        exchange: Exchange,
        length: Option<u64>,
        trailers: bool,
        tracked: Tracked,
        slot: StreamSlot,
    ) -> Self {
        Self {
            exchange,
            length,
            left: length.unwrap_or(0),
            trailers,
            ended: false,
            meter: tracked.meter(),
            tracked,
            slot,
            bulk: None,
            held: None,
        }
    }

    /// Once it is large it waits for `bulk`.
    pub fn recorded(mut self, bulk: Option<Box<Bulk>>) -> Self {
        self.bulk = bulk;
        self
    }

    /// The next frame for the client.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyCut>>> {
        if self.held.is_some() {
            return self.poll_held(cx);
        }
        loop {
            match ready!(self.exchange.poll_piece(cx)) {
                Ok(Piece::Data(data)) => {
                    if let Some(bulk) = &mut self.bulk {
                        bulk.count(data.len() as u64);
                        self.held = Some(data);
                        return self.poll_held(cx);
                    }
                    return Poll::Ready(Some(Ok(self.data(data))));
                }
                Ok(Piece::Trailers(mut trailers)) if self.trailers => {
                    let dropped: Vec<_> = trailers
                        .keys()
                        .filter(|name| !response_trailer_passes(name.as_str()))
                        .cloned()
                        .collect();
                    for name in dropped {
                        trailers.remove(name);
                    }
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Piece::Trailers(_)) => {}
                Ok(Piece::End) => {
                    self.ended = true;
                    return Poll::Ready(None);
                }
                Err(reason) => return Poll::Ready(Some(Err(self.cut(reason)))),
            }
        }
    }

    fn data(&mut self, data: Bytes) -> Frame<Bytes> {
        self.left = self.left.saturating_sub(data.len() as u64);
        self.meter.to_client(data.len() as u64);
        Frame::data(data)
    }

    /// The piece that waits, once it may go.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyCut>>> {
        let recorded = match &mut self.bulk {
            Some(bulk) => ready!(bulk.poll(cx)),
            None => Ok(None),
        };
        match recorded {
            Ok(None) => {}
            Ok(Some((event, before))) => {
                let held = self.held.as_ref().map_or(0, |held| held.len() as u64);
                let counted = before.saturating_sub(held);
                event.counts().to_client.store(counted, Ordering::Relaxed);
                self.tracked.audited(Some(event));
                self.meter = self.tracked.meter();
                self.bulk = None;
            }
            Err(reason) => return Poll::Ready(Some(Err(self.cut(reason)))),
        }
        let data = self.held.take().unwrap_or_default();
        Poll::Ready(Some(Ok(self.data(data))))
    }

    fn cut(&mut self, reason: CloseReason) -> BodyCut {
        self.ended = true;
        self.tracked.conn().abort();
        self.slot.closed(reason);
        self.tracked.ends(reason);
        BodyCut(reason)
    }

    /// Whether nothing more comes.
    pub fn is_done(&self) -> bool {
        self.ended || (self.length.is_some() && self.exchange.is_done() && self.held.is_none())
    }

    /// What is left, where that is known.
    pub fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(_) => SizeHint::with_exact(self.left),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if self.exchange.is_done() && self.held.is_none() {
            self.tracked.conn().disarm();
            self.slot.closed(CloseReason::Finished);
            self.tracked.ends(CloseReason::Finished);
        } else if !self.ended {
            let reason = self.tracked.conn().broke();
            self.slot.closed(reason);
            self.tracked.ends(reason);
        }
    }
}
