//! The body of an answer on its way from the agent to the client.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use culvert_proto::close::CloseReason;

use super::body::BodyCut;
use super::exchange::{Exchange, Piece};
use super::head::response_trailer_passes;
use super::tracked::Tracked;
use crate::sessions::StreamSlot;

/// A body streamed from an agent, with everything its request holds.
pub struct Relayed {
    exchange: Exchange,
    length: Option<u64>,
    left: u64,
    trailers: bool,
    ended: bool,
    tracked: Tracked,
    slot: StreamSlot,
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
            tracked,
            slot,
        }
    }

    /// The next frame for the client.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyCut>>> {
        loop {
            match ready!(self.exchange.poll_piece(cx)) {
                Ok(Piece::Data(data)) => {
                    self.left = self.left.saturating_sub(data.len() as u64);
                    self.tracked
                        .metrics()
                        .bytes_to_client
                        .inc_by(data.len() as u64);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
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
                Err(reason) => {
                    self.ended = true;
                    self.tracked.conn().abort();
                    self.slot.closed(reason);
                    return Poll::Ready(Some(Err(BodyCut(reason))));
                }
            }
        }
    }

    /// Whether nothing more comes.
    pub fn is_done(&self) -> bool {
        self.ended || (self.length.is_some() && self.exchange.is_done())
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
        if self.exchange.is_done() {
            self.tracked.conn().disarm();
            self.slot.closed(CloseReason::Finished);
        } else if !self.ended {
            self.slot.closed(self.tracked.conn().broke());
        }
    }
}
