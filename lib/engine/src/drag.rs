//! A delay between taking bytes and giving them on, for tests that look for it where it must show.
//! Builds with debug assertions alone have it: no release build does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

static DRAG_US: AtomicU64 = AtomicU64::new(0);

/// From now on every engine of this process waits so long, whenever it took bytes.
pub fn set(drag: Duration) {
    let us = u64::try_from(drag.as_micros()).unwrap_or(u64::MAX);
    DRAG_US.store(us, Ordering::Relaxed);
}

/// Waits.
pub(crate) fn wait() {
    let us = DRAG_US.load(Ordering::Relaxed);
    if us > 0 {
        std::thread::sleep(Duration::from_micros(us));
    }
}
