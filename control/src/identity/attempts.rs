//! How often somebody may try to sign in: for each address, and in all.

use std::collections::HashMap;

use parking_lot::Mutex;

/// Tries of an address in a minute.
const ADDRESS_MAX: u32 = 5;
/// Tries of everybody in a minute: each costs the work of a password hash.
const ALL_MAX: u32 = 60;
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4_096;
const MINUTE_MS: u64 = 60_000;

/// Counts of the present minute.
#[derive(Default)]
pub struct Attempts(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    minute: u64,
    all: u32,
    of: HashMap<String, u32>,
}

impl Attempts {
    /// Whether one more may be made; if not, in how many seconds.
    ///
    /// # Errors
    /// Seconds until the next minute.
    pub fn admit(&self, address: &str, now_ms: u64) -> Result<(), u64> {
        let wait_s = (MINUTE_MS - now_ms % MINUTE_MS).div_ceil(1_000);
        let mut counts = self.0.lock();
        if counts.minute != now_ms / MINUTE_MS {
            *counts = Counts {
                minute: now_ms / MINUTE_MS,
                ..Counts::default()
            };
        }
        if counts.all >= ALL_MAX {
            return Err(wait_s);
        }
        let is_full = counts.of.len() >= ADDRESSES_MAX && !counts.of.contains_key(address);
        let of_address = match is_full {
            true => return Err(wait_s),
            false => counts.of.entry(address.to_owned()).or_default(),
        };
        if *of_address >= ADDRESS_MAX {
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
        let attempts = Attempts::default();
        let now = 1_763_683_200_000;
        for _ in 0..ADDRESS_MAX {
            assert_eq!(attempts.admit("a", now), Ok(()));
        }
        assert_eq!(attempts.admit("a", now + 15_000), Err(45));
        assert_eq!(attempts.admit("b", now), Ok(()), "another is let in");
        let mut admitted = 6;
        for n in 0..200 {
            admitted += u32::from(attempts.admit(&format!("c{n}"), now).is_ok());
        }
        assert_eq!(admitted, ALL_MAX);
        assert_eq!(attempts.admit("a", now + MINUTE_MS), Ok(()));
    }
}
