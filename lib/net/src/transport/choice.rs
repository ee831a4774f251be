//! What is offered to which hub: the raw upgrade, or WebSocket alone (W-7 "Open").
//!
//! A box that answered the offer wrongly, or not at all, has shown itself: WebSocket is asked for
//! at once and, if that helps, for an hour. A connection that ended without an answer may as well
//! be a busy hub: the next attempt asks for WebSocket, and only when that helped twice in a row is
//! the box believed to be there.

use std::collections::HashMap;

use culvert_proto::limits::WEBSOCKET_ONLY_MEMORY_MS;

use crate::dial::HubUrl;

/// Hubs that something is known about; with one more all is forgotten, which costs a request each.
pub(crate) const HUBS_KNOWN_MAX: usize = 256;
/// Times in a row that WebSocket must have helped where the raw upgrade ended without an answer.
const HELPED_MIN: u32 = 2;

/// How the raw upgrade failed, where a box on the way may have done it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Something answered as no hub does, or swallowed the request.
    Mangled,
    /// The connection ended without an answer.
    Ended,
}

/// What is known about the ways to hubs. Time is an argument, in milliseconds.
#[derive(Default)]
pub(crate) struct Choices(HashMap<(String, u16), Choice>);

#[derive(Default)]
struct Choice {
    /// WebSocket alone until then.
    until_ms: u64,
    /// The next attempt asks for WebSocket alone.
    is_doubted: bool,
    /// Times in a row that it helped.
    helped: u32,
}

impl Choices {
    /// Whether the raw upgrade is not even offered.
    pub(super) fn is_websocket_only(&self, url: &HubUrl, now_ms: u64) -> bool {
        let known = self.0.get(&key(url));
        known.is_some_and(|choice| choice.is_doubted || now_ms < choice.until_ms)
    }

    /// The raw upgrade came through.
    pub(super) fn raw_passed(&mut self, url: &HubUrl) {
        self.0.remove(&key(url));
    }

    /// The raw upgrade failed with this sign.
    pub(super) fn raw_failed(&mut self, url: &HubUrl, sign: Sign) {
        if sign == Sign::Ended {
            self.of(url).is_doubted = true;
        }
    }

    /// WebSocket alone came through; `sign` tells of the raw upgrade that failed right before.
    pub(super) fn websocket_passed(&mut self, url: &HubUrl, sign: Option<Sign>, now_ms: u64) {
        let choice = self.of(url);
        let was_doubted = std::mem::take(&mut choice.is_doubted);
        choice.helped += u32::from(was_doubted);
        if sign == Some(Sign::Mangled) || (was_doubted && choice.helped >= HELPED_MIN) {
            choice.until_ms = now_ms.saturating_add(WEBSOCKET_ONLY_MEMORY_MS);
            choice.helped = 0;
        }
    }

    /// WebSocket alone failed too: it is not the offer that matters.
    pub(super) fn websocket_failed(&mut self, url: &HubUrl) {
        if let Some(choice) = self.0.get_mut(&key(url)) {
            (choice.is_doubted, choice.helped) = (false, 0);
        }
    }

    fn of(&mut self, url: &HubUrl) -> &mut Choice {
        let key = key(url);
        if self.0.len() >= HUBS_KNOWN_MAX && !self.0.contains_key(&key) {
            self.0.clear();
        }
        self.0.entry(key).or_default()
    }
}

fn key(url: &HubUrl) -> (String, u16) {
    (url.host().to_owned(), url.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn hub(n: usize) -> HubUrl {
        format!("wss://hub-{n}.example").parse().unwrap()
    }

    #[test]
    fn a_mangled_answer_is_remembered_for_an_hour_when_websocket_helped() {
        let (mut choices, url) = (Choices::default(), hub(1));
        choices.raw_failed(&url, Sign::Mangled);
        assert!(!choices.is_websocket_only(&url, 0), "it has not helped yet");
        choices.websocket_passed(&url, Some(Sign::Mangled), 5);
        assert!(choices.is_websocket_only(&url, 4 + HOUR_MS));
        assert!(!choices.is_websocket_only(&url, 5 + HOUR_MS));
        assert!(!choices.is_websocket_only(&hub(2), 6), "for that hub only");
        choices.websocket_passed(&url, None, 7);
        assert!(
            !choices.is_websocket_only(&url, 5 + HOUR_MS),
            "use renews nothing"
        );
    }

    #[test]
    fn a_connection_that_just_ended_counts_when_websocket_helped_twice() {
        let (mut choices, url) = (Choices::default(), hub(1));
        for time in 1..=2 {
            assert!(
                !choices.is_websocket_only(&url, 0),
                "raw is offered, time {time}"
            );
            choices.raw_failed(&url, Sign::Ended);
            assert!(choices.is_websocket_only(&url, 0), "then WebSocket alone");
            choices.websocket_passed(&url, None, 0);
        }
        assert!(choices.is_websocket_only(&url, HOUR_MS - 1));
        assert!(!choices.is_websocket_only(&url, HOUR_MS));
    }

    #[test]
    fn a_busy_hub_is_not_taken_for_a_box() {
        let (mut choices, url) = (Choices::default(), hub(1));
        // It closes on everybody.
        choices.raw_failed(&url, Sign::Ended);
        choices.websocket_failed(&url);
        assert!(!choices.is_websocket_only(&url, 0));
        // It recovers between two attempts, time and again, and takes raw upgrades in between.
        for _ in 0..5 {
            choices.raw_failed(&url, Sign::Ended);
            choices.websocket_passed(&url, None, 0);
            assert!(!choices.is_websocket_only(&url, 0));
            choices.raw_passed(&url);
        }
    }

    #[test]
    fn what_is_known_is_bounded() {
        let mut choices = Choices::default();
        for n in 0..=HUBS_KNOWN_MAX {
            choices.raw_failed(&hub(n), Sign::Ended);
        }
        assert_eq!(choices.0.len(), 1);
    }
}
