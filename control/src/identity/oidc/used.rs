//! States of sign-ins that came back: each is good once, although its cookie could be kept.
//!
//! In memory of this process. Another process, or this one after a restart, does not know
//! them: there the code itself, which a provider takes once, is what holds.

use std::collections::HashMap;

use culvert_net::crypto;
use parking_lot::Mutex;

/// States that are remembered: more than the limits of signing in let come back in ten minutes.
const USED_MAX: usize = 8_192;

/// States that came back, by their SHA-256, and when their sign-ins end.
#[derive(Default)]
pub struct Used(Mutex<HashMap<[u8; 32], u64>>);

impl Used {
    /// Whether `state` comes back for the first time. When too many are remembered, none does:
    /// nobody is signed in twice because somebody floods.
    pub fn take(&self, state: &str, expires_unix_s: u64, now_unix_s: u64) -> bool {
        let mut used = self.0.lock();
        if used.len() >= USED_MAX {
            used.retain(|_, expires| now_unix_s < *expires);
        }
        if used.len() >= USED_MAX {
            return false;
        }
        let digest = crypto::sha256(state.as_bytes());
        used.insert(digest, expires_unix_s).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_good_once_and_the_memory_is_bounded() {
        let used = Used::default();
        assert!(used.take("a", 600, 0) && used.take("b", 600, 0));
        assert!(!used.take("a", 600, 599));
        for n in 2..USED_MAX {
            assert!(used.take(&format!("s{n}"), 600, 0));
        }
        assert!(!used.take("one more", 600, 599));
        assert_eq!(used.0.lock().len(), USED_MAX);
        assert!(used.take("one more", 1_200, 600), "what ended is forgotten");
        assert_eq!(used.0.lock().len(), 1);
    }
}
