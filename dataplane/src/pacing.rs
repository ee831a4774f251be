//! Who has to wait before it may try again: failed credentials, and storms of
//! reconnecting agents.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use governor::clock::DefaultClock;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;

use culvert_proto::limits::{
    ADMISSIONS_PER_SECOND_MAX, AUTH_FAILURE_DELAY_MS, AUTH_FAILURES_PER_MINUTE_MAX,
};

/// Most sources remembered in each of the two layers.
pub const SOURCES_MAX: usize = 10_000;
const WINDOW: Duration = Duration::from_secs(60);
/// A full table is searched for counters to forget this often.
const SWEEP: Duration = Duration::from_secs(1);
/// Longest wait asked of an agent in a storm.
const SPREAD_SECONDS_MAX: u64 = 60;

/// A limiter of one rate.
pub type Limiter = RateLimiter<NotKeyed, InMemoryState, DefaultClock>;

/// A limiter of `per_second`, with as much burst.
pub fn limiter(per_second: NonZeroU32) -> Limiter {
    RateLimiter::direct(Quota::per_second(per_second))
}

/// Takes one from `limiter`, or says how long to wait.
pub fn take(limiter: &Limiter) -> Result<(), Duration> {
    use governor::clock::Clock as _;
    let now = DefaultClock::default().now();
    limiter.check().map_err(|until| until.wait_time_from(now))
}

/// Delays answers to sources that keep failing. Never refuses: behind one
/// address there may be good agents too.
#[derive(Default)]
pub struct FailurePacing {
    near: Mutex<Counts<[u8; 8]>>,
    far: Mutex<Counts<[u8; 6]>>,
}

/// The counters of one layer, and when it was last looked for ones to forget:
/// a full table must not be searched for every stranger.
struct Counts<K> {
    table: HashMap<K, Count>,
    swept: Option<Instant>,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self {
            table: HashMap::new(),
            swept: None,
        }
    }
}

#[derive(Clone, Copy)]
struct Count {
    since: Instant,
    failures: u32,
}

impl FailurePacing {
    /// Counts a failure of `source` and says how long its answer waits.
    pub fn failed(&self, source: IpAddr, now: Instant) -> Duration {
        let (near, far) = keys(source);
        let counted = count(&mut self.near.lock(), near, now);
        // Only when no counter can be forgotten, whole /48 networks share one;
        // an attacker who fills the table cannot reset his own counter.
        let counted = counted.or_else(|| count(&mut self.far.lock(), far, now));
        match counted {
            Some(failures) if failures <= AUTH_FAILURES_PER_MINUTE_MAX => Duration::ZERO,
            _ => Duration::from_millis(AUTH_FAILURE_DELAY_MS),
        }
    }
}

/// The failures of `key` in its window, this one included; `None` when the
/// table is full of counters that still run.
fn count<K: Copy + Eq + std::hash::Hash>(
    counts: &mut Counts<K>,
    key: K,
    now: Instant,
) -> Option<u32> {
    let over = |count: &Count| now.saturating_duration_since(count.since) >= WINDOW;
    let Counts { table, swept } = counts;
    if !table.contains_key(&key) && table.len() >= SOURCES_MAX {
        if swept.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP) {
            *swept = Some(now);
            table.retain(|_, count| !over(count));
        }
        if table.len() >= SOURCES_MAX {
            return None;
        }
    }
    let fresh = Count {
        since: now,
        failures: 0,
    };
    let counter = table.entry(key).or_insert(fresh);
    if over(counter) {
        *counter = fresh;
    }
    counter.failures = counter.failures.saturating_add(1);
    Some(counter.failures)
}

/// The /64 and the /48 of a source; an IPv4 address counts as its mapped form,
/// with the address itself in place of the prefix.
fn keys(source: IpAddr) -> ([u8; 8], [u8; 6]) {
    let (mut near, mut far) = ([0; 8], [0; 6]);
    match source.to_canonical() {
        IpAddr::V4(v4) => {
            near[..2].copy_from_slice(&[0xff, 0xff]);
            near[2..6].copy_from_slice(&v4.octets());
            far[..2].copy_from_slice(&[0xff, 0xff]);
            far[2..4].copy_from_slice(&v4.octets()[..2]);
        }
        IpAddr::V6(v6) => {
            near.copy_from_slice(&v6.octets()[..8]);
            far.copy_from_slice(&v6.octets()[..6]);
        }
    }
    (near, far)
}

/// Admits a bounded number of new sessions a second and spreads the rest.
pub struct Admission {
    limiter: Limiter,
    refused: Mutex<(Instant, u64)>,
}

impl Default for Admission {
    fn default() -> Self {
        let rate = NonZeroU32::new(ADMISSIONS_PER_SECOND_MAX).unwrap_or(NonZeroU32::MIN);
        Self {
            limiter: limiter(rate),
            refused: Mutex::new((Instant::now(), 0)),
        }
    }
}

impl Admission {
    /// Admits one session, or says when to come back. `random` spreads those
    /// who wait over as many seconds as they need.
    ///
    /// # Errors
    /// How long to wait.
    pub fn admit(&self, now: Instant, random: u64) -> Result<(), Duration> {
        if self.limiter.check().is_ok() {
            return Ok(());
        }
        let mut refused = self.refused.lock();
        if now.saturating_duration_since(refused.0) >= Duration::from_secs(10) {
            *refused = (now, 0);
        }
        refused.1 += 1;
        let span = (refused.1 / u64::from(ADMISSIONS_PER_SECOND_MAX) + 2).min(SPREAD_SECONDS_MAX);
        Err(Duration::from_secs(1 + random % span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(n: u64) -> IpAddr {
        let mut octets = [0; 16];
        octets[0] = 0x20;
        octets[..8].copy_from_slice(&(0x2001_0000_0000_0000 + n).to_be_bytes());
        IpAddr::from(octets)
    }

    #[test]
    fn the_failure_after_the_last_free_one_waits() {
        let pacing = FailurePacing::default();
        let (now, source) = (Instant::now(), v6(1));
        for _ in 0..AUTH_FAILURES_PER_MINUTE_MAX {
            assert_eq!(pacing.failed(source, now), Duration::ZERO);
        }
        assert_eq!(pacing.failed(source, now), Duration::from_secs(1));
        assert_eq!(
            pacing.failed(v6(2), now),
            Duration::ZERO,
            "another source is free"
        );
        assert_eq!(
            pacing.failed(source, now + WINDOW),
            Duration::ZERO,
            "a minute later"
        );
    }

    #[test]
    fn cycling_sources_resets_nobodys_counter() {
        let pacing = FailurePacing::default();
        let now = Instant::now();
        let blocked = v6(u64::from(u32::MAX));
        for _ in 0..=AUTH_FAILURES_PER_MINUTE_MAX {
            pacing.failed(blocked, now);
        }
        for n in 0..70_000 {
            pacing.failed(v6(n), now);
        }
        assert_eq!(pacing.failed(blocked, now), Duration::from_secs(1));
        assert!(pacing.near.lock().table.len() <= SOURCES_MAX);
    }

    #[test]
    fn ipv4_and_its_mapped_form_are_one_source() {
        let v4: IpAddr = "10.1.2.3".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().unwrap();
        assert_eq!(keys(v4), keys(mapped));
        assert_ne!(keys(v4), keys("10.1.2.4".parse().unwrap()));
    }

    #[test]
    fn admission_spreads_what_it_refuses() {
        let admission = Admission::default();
        let now = Instant::now();
        let mut waits = Vec::new();
        for random in 0..5_000 {
            if let Err(wait) = admission.admit(now, random) {
                waits.push(wait.as_secs());
            }
        }
        assert!(waits.len() > 3_500, "{} were asked to wait", waits.len());
        let longest = waits.iter().max().copied().unwrap_or(0);
        assert!((8..=SPREAD_SECONDS_MAX).contains(&longest), "{longest} s");
    }
}
