//! When a waiter hears a word.

use crate::pair::{ReplyCode, WAIT_INTERVAL_MS, WAIT_MAX_MS};

/// The wait of one side: a word at once, then every 15 s, the last after ten minutes.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    ends_ms: u64,
    next_ms: u64,
}

impl Patience {
    /// It begins to wait.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Patience {
            ends_ms: now_ms.saturating_add(WAIT_MAX_MS),
            next_ms: now_ms,
        }
    }

    /// What it is told now, if anything. After [`ReplyCode::WaitedTooLong`] it has to go.
    pub fn word(&mut self, now_ms: u64) -> Option<ReplyCode> {
        if now_ms >= self.ends_ms {
            return Some(ReplyCode::WaitedTooLong);
        }
        if now_ms < self.next_ms {
            return None;
        }
        self.next_ms = now_ms + WAIT_INTERVAL_MS;
        Some(ReplyCode::Wait)
    }

    /// When to ask again.
    #[must_use]
    pub fn due_ms(&self) -> u64 {
        self.next_ms.min(self.ends_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_at_once_then_every_15_s_and_the_last_after_ten_minutes() {
        let mut patience = Patience::new(1_000);
        let mut heard = Vec::new();
        loop {
            let now_ms = patience.due_ms();
            match patience.word(now_ms) {
                Some(ReplyCode::Wait) => heard.push(now_ms - 1_000),
                Some(code) => {
                    assert_eq!((code, now_ms), (ReplyCode::WaitedTooLong, 601_000));
                    break;
                }
                None => panic!("asked when it was due"),
            }
            assert_eq!(patience.word(now_ms + 14_999), None);
        }
        let every: Vec<u64> = (0..600_000).step_by(15_000).collect();
        assert_eq!(heard, every);
    }

    #[test]
    fn whoever_asks_late_hears_once_and_the_next_word_counts_from_there() {
        let mut patience = Patience::new(0);
        assert_eq!(patience.word(40_000), Some(ReplyCode::Wait));
        assert_eq!(patience.word(40_000), None);
        assert_eq!(patience.due_ms(), 55_000);
        assert_eq!(patience.word(599_999), Some(ReplyCode::Wait));
        assert_eq!(patience.due_ms(), 600_000);
    }
}
