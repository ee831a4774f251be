//! The state machine.
#![allow(unused_variables, reason = "first publication of the signatures")]
use crate::*;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;

/// One end of one session.
pub struct Mux;

impl Mux {
    /// A mux at the start of its carrier.
    #[must_use]
    pub fn new(config: Config, budget: Arc<Budget>) -> Mux {
        unimplemented!()
    }
    // --- carrier side ---
    /// Takes bytes from the carrier, split anywhere. After an error the mux is ended: transmit
    /// what is queued, then close the carrier.
    pub fn receive(&mut self, now_ms: u64, data: Bytes) -> Result<(), Violation> {
        unimplemented!()
    }
    /// Appends at most `bytes_max` bytes of frames to `out`, for one vectored write; returns how
    /// many bytes.
    pub fn transmit(&mut self, now_ms: u64, out: &mut Vec<Bytes>, bytes_max: usize) -> usize {
        unimplemented!()
    }
    /// Whether [`Mux::transmit`] has something to say.
    #[must_use]
    pub fn wants_transmit(&self) -> bool {
        unimplemented!()
    }
    /// The next thing the caller should know.
    pub fn next_event(&mut self) -> Option<Event> {
        unimplemented!()
    }
    /// When to call [`Mux::handle_timeout`].
    #[must_use]
    pub fn next_timeout_ms(&self) -> Option<u64> {
        unimplemented!()
    }
    /// Does what is due at `now_ms`.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        unimplemented!()
    }
    // --- stream side ---
    /// Opens a stream; its SYN goes out with the next transmit, together with what is written
    /// until then.
    pub fn open(&mut self, now_ms: u64) -> Result<StreamId, OpenError> {
        unimplemented!()
    }
    /// Queues `data`, as much as the send gate takes.
    pub fn write(&mut self, id: StreamId, data: Bytes) -> Result<Write, StreamError> {
        unimplemented!()
    }
    /// Copies as much of `data` as the send gate takes; returns how much. 0 = blocked, and
    /// [`Event::Writable`] will follow. Cheaper than [`Mux::write`] where the bytes are borrowed.
    pub fn write_slice(&mut self, id: StreamId, data: &[u8]) -> Result<usize, StreamError> {
        unimplemented!()
    }
    /// FIN after what is queued. Reading goes on.
    pub fn finish(&mut self, id: StreamId) {
        unimplemented!()
    }
    /// RST; drops all that is queued and unread. The id is unknown afterwards.
    pub fn reset(&mut self, id: StreamId) {
        unimplemented!()
    }
    /// At most `max` bytes, without a copy.
    pub fn read(&mut self, id: StreamId, max: usize) -> Result<Read, StreamError> {
        unimplemented!()
    }
    /// Copies into `buf` (not empty); returns how much. `None` = pending, 0 = end of stream.
    pub fn read_slice(
        &mut self,
        id: StreamId,
        buf: &mut [u8],
    ) -> Result<Option<usize>, StreamError> {
        unimplemented!()
    }
    /// The caller's handle is gone. A stream finished by both sides is forgotten once its queue is
    /// sent; any other is reset.
    pub fn release(&mut self, id: StreamId) {
        unimplemented!()
    }
    /// Sends a ping; [`Event::Pong`] brings the answer. At most one is in flight: a newer one
    /// replaces it.
    pub fn ping(&mut self, now_ms: u64) {
        unimplemented!()
    }
    /// 0: no new streams, live ones go on. Other codes end every stream.
    pub fn go_away(&mut self, code: u32) {
        unimplemented!()
    }
    /// The carrier is gone: every live stream ends with [`End::CarrierLost`].
    pub fn carrier_lost(&mut self) {
        unimplemented!()
    }
    /// Tells a round trip measured elsewhere (BEAT and ECHO), for window tuning.
    pub fn set_rtt_ms(&mut self, rtt_ms: u64) {
        unimplemented!()
    }
    /// The stalled stream that holds most memory, for the budget's last rung.
    #[must_use]
    pub fn largest_stalled(&self) -> Option<(StreamId, usize)> {
        unimplemented!()
    }
    /// Counts and sizes.
    #[must_use]
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
}
