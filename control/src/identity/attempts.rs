//! How often somebody may try to sign in: for each address, and in all.

use std::collections::HashMap;

use parking_lot::Mutex;

/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4_096;
const MINUTE_MS: u64 = 60_000;

/// Counts of the present minute.
pub struct Attempts {
    address_max: u32,
    all_max: u32,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    minute: u64,
    all: u32,
    of: HashMap<String, u32>,
}

impl Attempts {
    /// So many tries of an address, and of everybody, in a minute.
    #[must_use]
    pub fn new(address_max: u32, all_max: u32) -> Self {
        Self {
            address_max,
            all_max,
            counts: Mutex::default(),
        }
    }

    /// Whether one more may be made; if not, in how many seconds.
    ///
    /// # Errors
    /// Seconds until the next minute.
    pub fn admit(&self, address: &str, now_ms: u64) -> Result<(), u64> {
        let wait_s = (MINUTE_MS - now_ms % MINUTE_MS).div_ceil(1_000);
        let mut counts = self.counts.lock();
        if counts.minute != now_ms / MINUTE_MS {
            *counts = Counts {
                minute: now_ms / MINUTE_MS,
                ..Counts::default()
            };
        }
        if counts.all >= self.all_max {
            return Err(wait_s);
        }
        let is_full = counts.of.len() >= ADDRESSES_MAX && !counts.of.contains_key(address);
        let of_address = match is_full {
            true => return Err(wait_s),
            false => counts.of.entry(address.to_owned()).or_default(),
        };
        if *of_address >= self.address_max {
            return Err(wait_s);
        }
        *of_address += 1;
        counts.all += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_everybody_have_their_tries_a_minute() {
        let attempts = Attempts::new(5, 60);
        let now = 1_763_683_200_000;
        for _ in 0..5 {
            assert_eq!(attempts.admit("a", now), Ok(()));
        }
        assert_eq!(attempts.admit("a", now + 15_000), Err(45));
        assert_eq!(attempts.admit("b", now), Ok(()), "another is let in");
        let mut admitted = 6;
        for n in 0..200 {
            admitted += u32::from(attempts.admit(&format!("c{n}"), now).is_ok());
        }
        assert_eq!(admitted, 60);
        assert_eq!(attempts.admit("a", now + MINUTE_MS), Ok(()));
    }
}
