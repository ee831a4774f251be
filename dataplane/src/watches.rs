//! Streams without an end that a person holds at once (P-26).

use std::collections::HashMap;
use std::sync::Arc;

use http::Method;
use http::header::ACCEPT;
use http::request::Parts;
use parking_lot::Mutex;

/// Watch streams of one person on one data plane.
pub const WATCHES_PER_PERSON_MAX: u32 = 60;

/// Who holds how many; nobody stands here who holds none.
#[derive(Default)]
pub struct Watches(Arc<Mutex<HashMap<String, u32>>>);

/// One stream's place; given back when it is dropped.
pub struct Watching {
    held: Arc<Mutex<HashMap<String, u32>>>,
    subject: String,
}

impl Watches {
    /// Takes a place for one more stream of `subject`; `None` when all are taken.
    pub fn begin(&self, subject: &str) -> Option<Watching> {
        let mut all = self.0.lock();
        let held = all.entry(subject.to_owned()).or_default();
        if *held >= WATCHES_PER_PERSON_MAX {
            return None;
        }
        *held += 1;
        Some(Watching {
            held: self.0.clone(),
            subject: subject.to_owned(),
        })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut all = self.held.lock();
        if let Some(held) = all.get_mut(&self.subject) {
            *held -= 1;
            if *held == 0 {
                all.remove(&self.subject);
            }
        }
    }
}

/// Whether a request asks for a stream without an end: `watch` or `follow` of Kubernetes, or
/// server-sent events.
pub fn asks_for_one(parts: &Parts) -> bool {
    if parts.method != Method::GET {
        return false;
    }
    let query = parts.uri.query().unwrap_or_default();
    let asked = query.split('&').any(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        matches!(name, "watch" | "follow") && !matches!(value, "0" | "false")
    });
    let accepts = parts.headers.get_all(ACCEPT).iter();
    let mut accepts = accepts.filter_map(|line| line.to_str().ok());
    asked || accepts.any(|line| line.contains("text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_for_each_person_and_given_back() {
        let watches = Watches::default();
        let mut held: Vec<_> = (0..WATCHES_PER_PERSON_MAX)
            .map(|_| watches.begin("ana").unwrap())
            .collect();
        assert!(watches.begin("ana").is_none());
        assert!(watches.begin("ben").is_some(), "others have their own");
        held.pop();
        let again = watches.begin("ana");
        assert!(again.is_some());
        drop((held, again));
        assert!(watches.0.lock().is_empty());
    }

    #[test]
    fn streams_without_an_end_are_known_by_what_is_asked() {
        let parts = |method: &str, target: &str, accept: &str| {
            let request = http::Request::builder().method(method).uri(target);
            request
                .header("accept", accept)
                .body(())
                .unwrap()
                .into_parts()
                .0
        };
        for (method, target, accept, is_one) in [
            ("GET", "/api/v1/pods?watch=1", "*/*", true),
            ("GET", "/api/v1/pods?limit=5&watch=true", "*/*", true),
            ("GET", "/api/v1/pods?watch", "*/*", true),
            ("GET", "/log?follow=true", "*/*", true),
            ("GET", "/events", "text/event-stream", true),
            ("GET", "/api/v1/pods?watch=false", "*/*", false),
            ("GET", "/api/v1/pods?watch=0", "*/*", false),
            ("GET", "/watch", "*/*", false),
            ("POST", "/api/v1/pods?watch=1", "*/*", false),
        ] {
            assert_eq!(
                asks_for_one(&parts(method, target, accept)),
                is_one,
                "{target}"
            );
        }
    }
}
