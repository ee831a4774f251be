//! Connections that have not shown a request yet: bounded, the oldest leaves first.
//!
//! Ten thousand silent connections must not keep an agent out. Who is in the
//! lobby longest without a request is cut when a new one comes to a full lobby.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_telemetry::metrics::IntGauge;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Most connections of one listener that have not shown a request.
pub const LOBBY_MAX: usize = 4096;

/// The waiting connections of one listener.
pub struct Lobby {
    guests: Mutex<Guests>,
    gauge: IntGauge,
    max: usize,
}

#[derive(Default)]
struct Guests {
    next: u64,
    waiting: BTreeMap<u64, Arc<Notify>>,
}

/// One place in the lobby; dropping it leaves.
pub struct Guest {
    id: u64,
    lobby: Arc<Lobby>,
}

impl Lobby {
    /// A lobby of `max` places, at most [`LOBBY_MAX`]; `gauge` counts its guests.
    pub fn new(max: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            guests: Mutex::default(),
            gauge,
            max: max.clamp(1, LOBBY_MAX),
        })
    }

    /// Takes a place, at the cost of the oldest guest when none is free. The
    /// second value is told when this guest has to go.
    pub fn enter(self: &Arc<Self>) -> (Guest, Arc<Notify>) {
        let told = Arc::new(Notify::new());
        let mut guests = self.guests.lock();
        if guests.waiting.len() >= self.max
            && let Some((_, oldest)) = guests.waiting.pop_first()
        {
            oldest.notify_one();
        }
        let id = guests.next;
        guests.next += 1;
        guests.waiting.insert(id, told.clone());
        drop(guests);
        self.gauge.inc();
        let lobby = self.clone();
        (Guest { id, lobby }, told)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.lobby.guests.lock().waiting.remove(&self.id);
        self.lobby.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn a_full_lobby_sends_the_oldest_away() {
        let gauge = culvert_telemetry::metrics::Metrics::new().gauge("waiting", "Guests.");
        let lobby = Lobby::new(2, gauge.clone());
        let (_a, a_told) = lobby.enter();
        let (b, b_told) = lobby.enter();
        assert_eq!(gauge.get(), 2);
        let (_c, c_told) = lobby.enter();
        assert!(a_told.notified().now_or_never().is_some());
        assert!(b_told.notified().now_or_never().is_none());
        drop(b);
        let (_d, _) = lobby.enter();
        assert!(
            c_told.notified().now_or_never().is_none(),
            "a free place sends nobody away"
        );
        drop((_a, _c, _d));
        assert_eq!(gauge.get(), 0);
    }
}
