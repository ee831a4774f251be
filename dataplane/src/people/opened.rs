//! Sessions whose box was opened lately. The same cookie comes with each request of a page, and a
//! box is the dearest part of it. What a session is worth now is asked each time all the same.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use culvert_identity::Session;

/// Sessions that are kept: twice as many for each lock. A cookie has at most 4 KB.
const KEPT_MAX: usize = 64;
/// Threads seldom meet.
const LOCKS: usize = 16;

/// Kept by the text that was sent. Nobody gets one in who has no session.
#[derive(Default)]
pub struct Opened {
    hasher: RandomState,
    kept: [Mutex<Kept>; LOCKS],
}

/// Who was seen since the older ones were put aside, and those.
#[derive(Default)]
struct Kept {
    young: HashMap<Box<str>, Arc<Session>>,
    old: HashMap<Box<str>, Arc<Session>>,
}

impl Opened {
    /// The session of a cookie that was opened before.
    pub fn find(&self, text: &str) -> Option<Arc<Session>> {
        let mut kept = self.of(text);
        if let Some(session) = kept.young.get(text) {
            return Some(session.clone());
        }
        let (text, session) = kept.old.remove_entry(text)?;
        kept.insert(text, session.clone());
        Some(session)
    }

    /// Keeps what was opened.
    pub fn keep(&self, text: &str, session: Session) -> Arc<Session> {
        let session = Arc::new(session);
        self.of(text).insert(text.into(), session.clone());
        session
    }

    fn of(&self, text: &str) -> std::sync::MutexGuard<'_, Kept> {
        let lock = usize::try_from(self.hasher.hash_one(text)).unwrap_or(0) % LOCKS;
        let kept = self.kept[lock].lock();
        kept.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn insert(&mut self, text: Box<str>, session: Arc<Session>) {
        if self.young.len() >= KEPT_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(text, session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(subject: &str) -> Session {
        Session {
            subject: subject.to_owned(),
            email: String::new(),
            groups: Vec::new(),
            tier: None,
            provider: "corp".to_owned(),
            issued_unix_s: 0,
            sealed_unix_s: 0,
            idle_until_unix_s: 0,
            expires_unix_s: 0,
            epoch: 0,
        }
    }

    #[test]
    fn who_comes_again_is_known_and_the_number_kept_is_bounded() {
        let opened = Opened::default();
        assert!(opened.find("a").is_none());
        opened.keep("a", session("ana"));
        for n in 0..100_000 {
            // Who keeps coming stays.
            assert_eq!(opened.find("a").unwrap().subject, "ana");
            opened.keep(&n.to_string(), session("x"));
        }
        let kept = opened.kept.iter().map(|kept| {
            let kept = kept.lock().unwrap();
            kept.young.len() + kept.old.len()
        });
        assert!(kept.sum::<usize>() <= 2 * KEPT_MAX * LOCKS);
        assert!(opened.find("7").is_none());
    }
}
