//! Why something ended: one list for wire code, log field, metric label, audit word and
//! `Culvert-Error` (P11).

mod table;

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

pub use table::CloseReason;

/// Who caused an end, as far as it was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Who asked for the service.
    Client,
    /// The network, a proxy or a gateway between two of ours.
    Path,
    /// The data plane.
    Dataplane,
    /// The control plane or what its operator decided.
    Control,
    /// The agent.
    Agent,
    /// The private service.
    Upstream,
}

/// What the one who was refused should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Nothing failed, or the same request can only fail again.
    No,
    /// Again at once, on another session or carrier.
    AtOnce,
    /// Again with backoff; `Retry-After` wins when given.
    Backoff,
    /// Again, but not before 30 s: a person has to mend something first.
    Slow,
}

impl Side {
    /// The word in logs, labels and bodies.
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Path => "path",
            Side::Dataplane => "dataplane",
            Side::Control => "control",
            Side::Agent => "agent",
            Side::Upstream => "upstream",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Retry {
    /// The word in generated documentation and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Retry::No => "no",
            Retry::AtOnce => "at_once",
            Retry::Backoff => "backoff",
            Retry::Slow => "slow",
        }
    }
}

/// A word that is no close reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{seen:?} is no close reason")]
pub struct UnknownReason {
    /// The word seen, cut to 64 bytes.
    pub seen: String,
}

impl CloseReason {
    /// The reason of a wire code.
    pub fn from_code(code: u16) -> Option<CloseReason> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.code() == code)
    }

    /// The reason of a word.
    pub fn from_word(word: &str) -> Option<CloseReason> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == word)
    }

    /// What a peer without a valid credential is told: every refused credential looks the same.
    /// The log keeps the observed reason.
    pub fn for_stranger(self) -> CloseReason {
        match self {
            CloseReason::TokenExpired
            | CloseReason::TokenRevoked
            | CloseReason::ClusterMismatch
            | CloseReason::SignedOut
            | CloseReason::NotEnrolled => CloseReason::Unauthenticated,
            other => other,
        }
    }

    /// Whether the end was orderly, so that nobody has to look.
    pub fn is_clean(self) -> bool {
        self.code() < 100
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CloseReason {
    type Err = UnknownReason;
    fn from_str(word: &str) -> Result<Self, UnknownReason> {
        Self::from_word(word).ok_or_else(|| UnknownReason {
            seen: String::from(crate::text::clip(word, 64)),
        })
    }
}

impl core::error::Error for CloseReason {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn codes_and_words_are_unique_and_round_trip() {
        let mut codes = BTreeSet::new();
        let mut words = BTreeSet::new();
        for reason in CloseReason::ALL {
            assert!(codes.insert(reason.code()), "{reason} repeats a code");
            assert!(words.insert(reason.as_str()), "{reason} repeats a word");
            assert_eq!(CloseReason::from_code(reason.code()), Some(*reason));
            assert_eq!(reason.as_str().parse(), Ok(*reason));
        }
        assert_eq!(CloseReason::from_code(0), None);
        assert!("nonsense".parse::<CloseReason>().is_err());
    }

    #[test]
    fn words_fit_labels_and_texts_tell_what_to_do() {
        for reason in CloseReason::ALL {
            let word = reason.as_str();
            let odd = word == "E_CAP_USER";
            let snake = word
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            assert!(odd || snake, "{word}");
            assert!(
                reason.meaning().len() > 10 && !reason.meaning().contains('\n'),
                "{word}"
            );
            assert!(
                reason.fix().len() > 10 && !reason.fix().contains('\n'),
                "{word}"
            );
        }
    }

    #[test]
    fn code_blocks_follow_the_side() {
        for reason in CloseReason::ALL {
            let side = match reason.code() {
                1..100 => continue,
                100..200 => Side::Client,
                200..300 => Side::Path,
                300..400 => Side::Dataplane,
                400..500 => Side::Control,
                500..600 => Side::Agent,
                _ => Side::Upstream,
            };
            assert_eq!(reason.side(), side, "{reason}");
        }
    }

    /// The words of contract C-26 with their statuses, and security.md 3.7.
    #[test]
    fn statuses_of_the_contract() {
        for (word, status) in [
            ("unauthenticated", 401),
            ("forbidden", 403),
            ("target_not_allowed", 403),
            ("no_identity", 403),
            ("unknown_cluster", 404),
            ("body_too_large", 413),
            ("rate_limited", 429),
            ("E_CAP_USER", 429),
            ("dial_refused", 502),
            ("target_tls", 502),
            ("agent_absent", 503),
            ("agent_draining", 503),
            ("too_many_streams", 503),
            ("overload", 503),
            ("dial_timeout", 504),
            ("bad_head", 400),
            ("bad_framing", 400),
            ("duplicate", 409),
            ("no_common_version", 426),
            ("audit_unavailable", 503),
        ] {
            let reason: CloseReason = word.parse().unwrap();
            assert_eq!(reason.http_status(), Some(status), "{word}");
        }
        assert_eq!(
            CloseReason::CarrierLost.http_status(),
            None,
            "mid-answer: RST, no status"
        );
    }

    #[test]
    fn only_refused_credentials_are_401() {
        for reason in CloseReason::ALL {
            if reason.http_status() == Some(401) {
                assert_eq!(
                    reason.for_stranger(),
                    CloseReason::Unauthenticated,
                    "{reason}"
                );
                assert_eq!(reason.retry(), Retry::Slow, "{reason}");
            }
        }
    }
}
