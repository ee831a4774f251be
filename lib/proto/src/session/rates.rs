//! How fast a peer may talk.

use super::{MESSAGES_PER_SECOND_MAX, Violation};
use crate::limits::PINGS_PER_SECOND_MAX;

#[derive(Default)]
pub(super) struct Rates {
    second_ms: u64,
    messages: u32,
    beats: u32,
}

impl Rates {
    /// Counts one message; an error is one too many in this second.
    pub(super) fn count(&mut self, now_ms: u64, is_beat: bool) -> Result<(), Violation> {
        if now_ms.saturating_sub(self.second_ms) >= 1_000 {
            *self = Rates {
                second_ms: now_ms,
                ..Rates::default()
            };
        }
        self.messages += 1;
        self.beats += u32::from(is_beat);
        if self.beats > PINGS_PER_SECOND_MAX {
            return Err(Violation::Rate {
                what: "BEATs",
                max: PINGS_PER_SECOND_MAX,
            });
        }
        if self.messages > MESSAGES_PER_SECOND_MAX {
            return Err(Violation::Rate {
                what: "messages",
                max: MESSAGES_PER_SECOND_MAX,
            });
        }
        Ok(())
    }
}
