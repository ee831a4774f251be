//! What is said aloud at most once a minute for each cause, however many connections meet it.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

const EVERY: Duration = Duration::from_secs(60);
/// Causes that are known at once; with one more all are said anew.
const CAUSES_MAX: usize = 256;

/// Keeps a log from being flooded.
#[derive(Default)]
pub(super) struct Aloud {
    said: Mutex<HashMap<String, Said>>,
}

struct Said {
    at: Instant,
    kept_back: u64,
}

impl Aloud {
    /// Whether what happened to `whom` is to be said now, and how often it was kept back since it
    /// was last said. Texts that differ in numbers are of one cause.
    pub(super) fn now(&self, whom: &str, what: &str) -> Option<u64> {
        let what: String = what.chars().filter(|c| !c.is_ascii_digit()).collect();
        let cause = format!("{whom} {what}");
        let now = Instant::now();
        let mut said = self.said.lock();
        if let Some(known) = said.get_mut(&cause) {
            if now.duration_since(known.at) < EVERY {
                known.kept_back += 1;
                return None;
            }
            known.at = now;
            return Some(std::mem::take(&mut known.kept_back));
        }
        if said.len() >= CAUSES_MAX {
            said.clear();
        }
        let first = Said {
            at: now,
            kept_back: 0,
        };
        said.insert(cause, first);
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_cause_is_said_at_once_then_once_a_minute_with_what_was_kept_back() {
        let aloud = Aloud::default();
        let refused = |seconds: u16| format!("the relay refused (again after {seconds} s)");
        assert_eq!(aloud.now("r:443", &refused(1)), Some(0));
        for seconds in 2..30 {
            assert_eq!(aloud.now("r:443", &refused(seconds)), None);
        }
        assert_eq!(aloud.now("s:443", &refused(1)), Some(0), "another relay");
        assert_eq!(aloud.now("r:443", "bad proof"), Some(0), "another cause");
        tokio::time::advance(EVERY).await;
        assert_eq!(aloud.now("r:443", &refused(9)), Some(28));
        assert_eq!(aloud.now("r:443", &refused(9)), None);
        for cause in 0..2 * CAUSES_MAX {
            let whom = format!("client {cause}");
            assert_eq!(aloud.now(&whom, "x"), Some(0));
        }
        assert!(aloud.said.lock().len() <= CAUSES_MAX);
    }
}
