//! When a carrier without control stream is dead: by received bytes, helped by pings.

use culvert_proto::limits::{PING_DEAD_MS, PING_INTERVAL_MS};

/// Life of a compatible carrier. Times are milliseconds since its start.
pub(super) struct Liveness {
    received_ms: u64,
    next_ping_ms: u64,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Ping,
    /// Silent for this many milliseconds.
    Dead(u64),
}

impl Liveness {
    pub(super) fn new() -> Liveness {
        Liveness {
            received_ms: 0,
            next_ping_ms: PING_INTERVAL_MS,
        }
    }

    pub(super) fn received(&mut self, now_ms: u64) {
        self.received_ms = self.received_ms.max(now_ms);
    }

    pub(super) fn next_ms(&self) -> u64 {
        self.next_ping_ms.min(self.received_ms + PING_DEAD_MS)
    }

    pub(super) fn due(&mut self, now_ms: u64) -> Due {
        if now_ms >= self.received_ms + PING_DEAD_MS {
            Due::Dead(now_ms - self.received_ms)
        } else if now_ms >= self.next_ping_ms {
            self.next_ping_ms = now_ms + PING_INTERVAL_MS;
            Due::Ping
        } else {
            Due::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_unanswered_pings_are_death_and_any_byte_is_life() {
        let mut life = Liveness::new();
        assert_eq!(life.next_ms(), 15_000);
        assert_eq!(life.due(14_999), Due::Nothing);
        assert_eq!(life.due(15_000), Due::Ping);
        assert_eq!(life.due(15_001), Due::Nothing);
        assert_eq!(life.due(30_000), Due::Ping);
        life.received(30_001);
        assert_eq!(life.due(45_000), Due::Ping);
        assert_eq!(life.due(75_000), Due::Ping);
        assert_eq!(life.next_ms(), 75_001);
        assert_eq!(life.due(75_001), Due::Dead(45_000));
    }
}
