//! What was sent and not acknowledged yet.

use std::collections::VecDeque;

/// Batches that travel at once.
pub const IN_FLIGHT_MAX: usize = 4;

/// The sender's state: what leaves next, and what waits for control's word. A new
/// link starts again behind the last word.
#[derive(Debug, Default)]
pub struct Window {
    acked: u64,
    in_flight: VecDeque<u64>,
}

/// Control acknowledged what was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("control acknowledged {seen}, which ends no batch that was sent")]
pub struct BadAck {
    /// The position in it.
    pub seen: u64,
}

impl Window {
    /// All before `acked` is in the store.
    #[must_use]
    pub fn new(acked: u64) -> Self {
        Self {
            acked,
            in_flight: VecDeque::new(),
        }
    }

    /// Where the next batch begins; `None` while too many travel.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        (self.in_flight.len() < IN_FLIGHT_MAX).then(|| self.sent_to())
    }

    /// A batch left that ends before `end`.
    pub fn sent(&mut self, end: u64) {
        debug_assert!(end > self.sent_to(), "batches leave in order");
        self.in_flight.push_back(end);
    }

    /// Control has everything before `end`, for good.
    ///
    /// # Errors
    /// [`BadAck`]: the link is of no use any more.
    pub fn acked(&mut self, end: u64) -> Result<(), BadAck> {
        let found = self.in_flight.iter().position(|sent| *sent == end);
        let place = found.ok_or(BadAck { seen: end })?;
        self.in_flight.drain(..=place);
        self.acked = end;
        Ok(())
    }

    /// A new link: what was not acknowledged leaves again.
    pub fn restart(&mut self) {
        self.in_flight.clear();
    }

    fn sent_to(&self) -> u64 {
        self.in_flight.back().copied().unwrap_or(self.acked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_link_sends_again_what_was_not_acknowledged() {
        let mut window = Window::new(5);
        for end in [7, 9, 10, 20] {
            assert!(window.next().is_some());
            window.sent(end);
        }
        assert_eq!(window.next(), None, "{IN_FLIGHT_MAX} travel");
        assert_eq!(window.acked(8), Err(BadAck { seen: 8 }));
        window.acked(9).unwrap();
        assert_eq!(window.next(), Some(20));
        window.restart();
        assert_eq!(window.next(), Some(9));
        assert_eq!(
            window.acked(20),
            Err(BadAck { seen: 20 }),
            "of the old link"
        );
    }
}
