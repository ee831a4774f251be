//! How often one source may come.

use alloc::collections::{BTreeMap, BTreeSet};
use core::net::IpAddr;

/// Sources that are counted apart.
pub const SOURCES_MAX: usize = 10_000;
/// Neighbourhoods that are counted when there is no place for a source of its own.
pub const SOURCES_WIDE_MAX: usize = 10_000;

/// Refusals of one source in a minute that it is told of; further ones are dropped
/// unanswered, as each costs a handshake.
const TOLD_PER_MINUTE_MAX: u64 = 10;
const MINUTE_US: u64 = 60_000_000;

/// Who is counted as one: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(u64, bool);

/// Whether a connection is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Admit,
    /// Too many of this source: it is told so, and when to come again.
    Refuse {
        /// In so many seconds.
        retry_after_s: u16,
    },
    /// Too many even to be told.
    Drop,
}

/// The rate of each source. An entry goes when its source may do again all that a
/// stranger may; when there is none, strangers share an entry of their
/// neighbourhood (/48, IPv4 /24), and the last layer is one for all. So nobody
/// gets a new start by filling the table.
pub struct Sources {
    interval_us: u64,
    burst_us: u64,
    own: Layer,
    wide: Layer,
    rest: Bucket,
}

/// Empties at a steady rate: full when `busy_until` is a burst ahead of now.
#[derive(Clone, Copy, Default)]
struct Bucket {
    busy_until_us: u64,
    told_until_us: u64,
}

/// Buckets by source, and by the time at which they are as good as new.
struct Layer {
    max: usize,
    buckets: BTreeMap<Source, Bucket>,
    by_time: BTreeSet<(u64, Source)>,
}

impl Source {
    /// Of an address. An IPv4 address in IPv6 form is the IPv4 address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(four) => Source(u64::from(four.to_bits()), false),
            IpAddr::V6(six) => {
                let [a, b, c, d, ..] = six.segments().map(u64::from);
                Source(a << 48 | b << 32 | c << 16 | d, true)
            }
        }
    }

    /// The /48 or /24 around it.
    fn wide(self) -> Self {
        let Source(bits, six) = self;
        let cut = if six { 16 } else { 8 };
        Source(bits >> cut << cut, six)
    }
}

impl Sources {
    /// Lets each source in `per_minute` times a minute, at least once.
    #[must_use]
    pub fn new(per_minute: u32) -> Self {
        let interval_us = MINUTE_US / u64::from(per_minute.max(1));
        Sources {
            interval_us,
            burst_us: interval_us * u64::from(per_minute.max(1)),
            own: Layer::new(SOURCES_MAX),
            wide: Layer::new(SOURCES_WIDE_MAX),
            rest: Bucket::default(),
        }
    }

    /// One more connection of `source`.
    pub fn admit(&mut self, now_ms: u64, source: Source) -> Verdict {
        let now_us = now_ms.saturating_mul(1_000);
        let (interval_us, burst_us) = (self.interval_us, self.burst_us);
        let take = |bucket: &mut Bucket| bucket.take(now_us, interval_us, burst_us);
        if let Some(verdict) = self.own.with(now_us, source, take) {
            return verdict;
        }
        let shared = self.wide.with(now_us, source.wide(), take);
        shared.unwrap_or_else(|| take(&mut self.rest))
    }

    /// Sources counted apart now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.own.buckets.len()
    }

    /// Nobody is counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Bucket {
    fn take(&mut self, now_us: u64, interval_us: u64, burst_us: u64) -> Verdict {
        let busy = self.busy_until_us.max(now_us) + interval_us;
        if busy - now_us <= burst_us {
            self.busy_until_us = busy;
            return Verdict::Admit;
        }
        let told = self.told_until_us.max(now_us) + MINUTE_US / TOLD_PER_MINUTE_MAX;
        if told - now_us > MINUTE_US {
            return Verdict::Drop;
        }
        self.told_until_us = told;
        // Enough time for a tenth of what a minute allows, so that nobody comes
        // back for a single try.
        let wait_us = busy - now_us - burst_us + burst_us / 10;
        let retry_after_s = u16::try_from(wait_us.div_ceil(1_000_000)).unwrap_or(u16::MAX);
        Verdict::Refuse { retry_after_s }
    }
}

impl Layer {
    fn new(max: usize) -> Self {
        Layer {
            max,
            buckets: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }

    /// Uses the bucket of `source`; `None` when it has none and there is no place.
    fn with(
        &mut self,
        now_us: u64,
        source: Source,
        take: impl FnOnce(&mut Bucket) -> Verdict,
    ) -> Option<Verdict> {
        if !self.buckets.contains_key(&source) && !self.has_place(now_us) {
            return None;
        }
        let bucket = self.buckets.entry(source).or_default();
        self.by_time.remove(&(bucket.busy_until_us, source));
        let verdict = take(bucket);
        self.by_time.insert((bucket.busy_until_us, source));
        Some(verdict)
    }

    /// Makes one, at the cost of a bucket that is as good as new.
    fn has_place(&mut self, now_us: u64) -> bool {
        if self.buckets.len() < self.max {
            return true;
        }
        match self.by_time.first().copied() {
            Some((until_us, source)) if until_us <= now_us => {
                self.by_time.pop_first();
                self.buckets.remove(&source);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    fn admitted(sources: &mut Sources, now_ms: u64, from: Source, tries: u32) -> u32 {
        let tries = (0..tries).map(|_| sources.admit(now_ms, from));
        u32::try_from(tries.filter(|it| *it == Verdict::Admit).count()).unwrap()
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_64() {
        assert_eq!(source("10.0.0.1"), source("::ffff:10.0.0.1"));
        assert_ne!(source("10.0.0.1"), source("10.0.0.2"));
        assert_eq!(source("2001:db8:1:2::1"), source("2001:db8:1:2:f::9"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
        assert_ne!(source("::a00:1"), source("10.0.0.1"));
        assert_eq!(
            source("2001:db8:1:2::").wide(),
            source("2001:db8:1:3::").wide()
        );
        assert_eq!(source("10.0.0.1").wide(), source("10.0.0.200").wide());
    }

    #[test]
    fn a_minute_lets_in_the_limit_and_not_one_more() {
        for limit in [10, 70, 100, 1_000] {
            let mut sources = Sources::new(limit);
            let from = source("192.0.2.1");
            assert_eq!(admitted(&mut sources, 5, from, limit + 1), limit);
            assert_eq!(admitted(&mut sources, 5, source("192.0.2.2"), 1), 1);
            assert_eq!(admitted(&mut sources, 5 + 60_000, from, limit * 2), limit);
        }
    }

    #[test]
    fn whoever_is_refused_is_told_ten_times_a_minute() {
        let mut sources = Sources::new(100);
        let from = source("192.0.2.1");
        admitted(&mut sources, 0, from, 100);
        for _ in 0..10 {
            let verdict = sources.admit(0, from);
            assert!(
                matches!(verdict, Verdict::Refuse { retry_after_s: 7 }),
                "{verdict:?}"
            );
        }
        assert_eq!(sources.admit(0, from), Verdict::Drop);
        // Who obeys finds room.
        assert_eq!(admitted(&mut sources, 7_000, from, 100), 11);
    }
}
