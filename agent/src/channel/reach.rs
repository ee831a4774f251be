//! Whether data channels reach a hub: a box that lets only one kind of
//! connection through makes every attempt cost time, so it is remembered.

use std::collections::HashMap;
use std::time::Duration;

use culvert_net::dial::HubUrl;

/// Failures in a row after which channels are not tried for a while.
pub const FAILURES_MAX: u32 = 3;
/// First and longest time in which they are not tried.
pub const BARRED_MIN: Duration = Duration::from_secs(30);
/// As above.
pub const BARRED_MAX: Duration = Duration::from_secs(600);
/// Hub addresses that something is known about; one more and all is forgotten.
pub const HUBS_KNOWN_MAX: usize = 64;

/// What is known. Time is an argument: since any fixed moment.
#[derive(Default)]
pub struct Reach(HashMap<(String, u16), Known>);

#[derive(Default)]
struct Known {
    failures: u32,
    barred_until: Option<Duration>,
    barred_for: Duration,
}

impl Reach {
    /// Whether a channel to `hub` is not worth a try.
    #[must_use]
    pub fn is_barred(&self, hub: &HubUrl, now: Duration) -> bool {
        let known = self.0.get(&key(hub));
        known.is_some_and(|known| known.barred_until.is_some_and(|until| now < until))
    }

    /// One was opened.
    pub fn opened(&mut self, hub: &HubUrl) {
        self.0.remove(&key(hub));
    }

    /// One could not be opened. `Some` when none is tried for that long from now on.
    pub fn failed(&mut self, hub: &HubUrl, now: Duration) -> Option<Duration> {
        if self.is_barred(hub, now) {
            return None;
        }
        let key = key(hub);
        if self.0.len() >= HUBS_KNOWN_MAX && !self.0.contains_key(&key) {
            self.0.clear();
        }
        let known = self.0.entry(key).or_default();
        known.failures += 1;
        // After a time in which none was tried, the first failure is enough.
        if known.failures < FAILURES_MAX && known.barred_until.is_none() {
            return None;
        }
        known.failures = 0;
        known.barred_for = (known.barred_for * 2).clamp(BARRED_MIN, BARRED_MAX);
        known.barred_until = Some(now + known.barred_for);
        Some(known.barred_for)
    }
}

fn key(hub: &HubUrl) -> (String, u16) {
    (hub.host().to_owned(), hub.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(n: usize) -> HubUrl {
        format!("wss://hub-{n}.example").parse().unwrap()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn three_failures_bar_a_hub_and_longer_each_time() {
        let (mut reach, hub) = (Reach::default(), hub(1));
        assert_eq!(reach.failed(&hub, SECOND), None);
        assert_eq!(reach.failed(&hub, SECOND), None);
        assert!(!reach.is_barred(&hub, SECOND));
        assert_eq!(reach.failed(&hub, SECOND), Some(BARRED_MIN));
        assert!(reach.is_barred(&hub, SECOND));
        assert_eq!(reach.failed(&hub, SECOND), None, "said once");
        let mut now = SECOND + BARRED_MIN;
        assert!(!reach.is_barred(&hub, now));
        for wanted_s in [60, 120, 240, 480, 600, 600] {
            let wanted = Duration::from_secs(wanted_s);
            assert_eq!(reach.failed(&hub, now), Some(wanted));
            now += wanted;
        }
        reach.opened(&hub);
        assert_eq!(reach.failed(&hub, now), None, "forgotten by one success");
    }

    #[test]
    fn what_is_known_is_bounded_and_of_one_hub() {
        let mut reach = Reach::default();
        for _ in 0..FAILURES_MAX {
            reach.failed(&hub(0), SECOND);
        }
        assert!(!reach.is_barred(&hub(1), SECOND));
        for n in 0..=HUBS_KNOWN_MAX {
            reach.failed(&hub(n), SECOND);
        }
        assert!(reach.0.len() <= HUBS_KNOWN_MAX);
    }
}
