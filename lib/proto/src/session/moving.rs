//! When a carrier has served its time: the hub asks for a new one before ids run out (security.md
//! 4.2, rule 12).

use alloc::vec::Vec;

use super::{Role, Session};
use crate::control::Drain;
use crate::hello::Caps;
use crate::limits::{
    CARRIER_LIFE_MAX_MS, CARRIER_MOVE_DEADLINE_MS, CARRIER_MOVE_WINDOW_MS, CARRIER_OPENS_MAX,
};

/// How long a carrier is used. A hub's business; an agent moves when it is told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Since the session began, ms.
    pub life_ms: u64,
    /// Streams that the hub opened.
    pub opens: u64,
}

impl Default for Lifetime {
    fn default() -> Self {
        Lifetime {
            life_ms: CARRIER_LIFE_MAX_MS,
            opens: CARRIER_OPENS_MAX,
        }
    }
}

impl Session {
    /// Hub: one more stream was opened. At the limit the agent is told to move.
    pub fn on_opened(&mut self) {
        self.opens = self.opens.saturating_add(1);
        if self.opens >= self.config.lifetime.opens {
            self.ask_to_move();
        }
    }

    /// When the carrier is too old; `None` where nobody would be told.
    pub(super) fn moves_at_ms(&self) -> Option<u64> {
        let life_ms = self.config.lifetime.life_ms;
        self.can_ask_to_move()
            .then(|| self.started_ms.saturating_add(life_ms))
    }

    /// DRAIN, once. The window is as wide as the jitter of reconnects: a whole fleet may have come
    /// in one minute.
    pub(super) fn ask_to_move(&mut self) {
        if self.can_ask_to_move() {
            // Cannot fail: what it needs was just checked.
            let _ = self.drain(Drain {
                reconnect_within_ms: CARRIER_MOVE_WINDOW_MS,
                deadline_ms: CARRIER_MOVE_DEADLINE_MS,
                addresses: Vec::new(),
            });
        }
    }

    fn can_ask_to_move(&self) -> bool {
        let is_hub = matches!(self.role, Role::Hub(_));
        is_hub && self.is_open() && !self.told_to_move && self.config.caps.has(Caps::DRAIN)
    }
}
