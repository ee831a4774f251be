//! Pairs are shown to who watches them, and to who asked for a look.

use std::sync::atomic::Ordering;

use super::Worker;
use crate::legs::SAMPLE_INTERVAL;
use crate::observe;
use crate::slab::Id;
use crate::tally::millis;

impl Worker {
    /// Shows a pair to who watches it, before its first byte.
    pub(super) fn show_first(&mut self, id: Id) {
        let Some(entry) = self.pairs.get(id) else {
            return;
        };
        if let Some(mut observer) = entry.observer.take() {
            observer.joined(entry.sockets());
            entry.observer = Some(observer);
            let due_ms = self.shared.now_ms + millis(SAMPLE_INTERVAL);
            self.samples.set_behind(due_ms, id);
        }
    }

    /// Shows pairs to who watches them or asked, a bounded number at a time.
    pub(super) fn show(&mut self) {
        let now_ms = self.shared.now_ms;
        for _ in 0..observe::VISITS_MAX {
            let Some(id) = self.samples.due(now_ms) else {
                break;
            };
            let Some(entry) = self.pairs.get(id) else {
                continue;
            };
            if let Some(mut observer) = entry.observer.take() {
                observer.sample(entry.sockets());
                entry.observer = Some(observer);
                self.samples
                    .set_behind(now_ms + millis(SAMPLE_INTERVAL), id);
            }
        }
        for visit in observe::few(&mut self.visits) {
            let (id, _) = Id::of(visit.live.place.load(Ordering::Relaxed));
            if let Some(entry) = self.pairs.get(id) {
                (visit.look)(entry.sockets());
            }
        }
    }
}
