//! Whether the loops of this process run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often a loop shows that it runs, and how late it may be.
const BEAT: Duration = Duration::from_secs(1);
const LATE_S: u64 = 10;

/// The loops that show it; one for each thread.
pub struct Beats {
    clock: Instant,
    beats: Mutex<Vec<Arc<AtomicU64>>>,
}

impl Default for Beats {
    fn default() -> Self {
        Self {
            clock: Instant::now(),
            beats: Mutex::default(),
        }
    }
}

impl Beats {
    /// Shows that the calling loop runs, as long as it is polled.
    pub async fn beat(&self) {
        let beat = Arc::new(AtomicU64::new(self.clock.elapsed().as_secs()));
        self.beats.lock().push(beat.clone());
        let mut tick = tokio::time::interval(BEAT);
        loop {
            tick.tick().await;
            beat.store(self.clock.elapsed().as_secs(), Ordering::Relaxed);
        }
    }

    /// Whether every loop ticked lately.
    pub fn is_alive(&self) -> bool {
        let now = self.clock.elapsed().as_secs();
        let late = |beat: &Arc<AtomicU64>| now - beat.load(Ordering::Relaxed).min(now) > LATE_S;
        !self.beats.lock().iter().any(late)
    }
}
