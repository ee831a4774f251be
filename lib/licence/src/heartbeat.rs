//! What the vendor is told and what it may answer.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Standing;
use crate::verify::TOKEN_BYTES_MAX;

/// Between two heartbeats.
const PERIOD_MS: u64 = 6 * 3_600_000;
/// The first comes within this time of the start.
pub const FIRST_MS_MAX: u64 = 10 * 60_000;
/// Longest answer that is read, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;
/// What is shown of the answer's message, in bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 10;
/// Longest version that is shown, in characters.
const VERSION_CHARS_MAX: usize = 64;

/// All that the vendor is ever told: these seven fields (L-22, R-27).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Payload {
    /// The id that the licence claims, or empty.
    pub license_id: String,
    /// Version of this program.
    pub hub_version: String,
    /// The mode, and what is wrong with the licence (D-21).
    pub hub_mode: String,
    /// As configured.
    pub org_name: String,
    /// How many clusters are registered; no names.
    pub cluster_count: u64,
    /// How many rows the audit log got in 24 hours; no rows.
    pub audit_event_count_24h: u64,
    /// When control started, RFC 3339.
    pub started_at: String,
}

/// What a payload is made from.
pub struct Beat<'a> {
    /// The id that the licence claims.
    pub license_id: &'a str,
    /// Version of this program.
    pub version: &'a str,
    /// The mode.
    pub mode: &'a str,
    /// The verdict.
    pub standing: Standing,
    /// As configured.
    pub org_name: &'a str,
    /// Clusters registered.
    pub clusters: u64,
    /// Rows of the audit log in 24 hours.
    pub audit_rows: u64,
    /// When control started, milliseconds since 1970.
    pub started_unix_ms: u64,
}

impl From<Beat<'_>> for Payload {
    fn from(beat: Beat<'_>) -> Self {
        let started = i64::try_from(beat.started_unix_ms / 1000).unwrap_or(i64::MAX);
        let started = Timestamp::from_second(started);
        Self {
            license_id: beat.license_id.to_owned(),
            hub_version: beat.version.to_owned(),
            hub_mode: hub_mode(beat.mode, beat.standing),
            org_name: beat.org_name.to_owned(),
            cluster_count: beat.clusters,
            audit_event_count_24h: beat.audit_rows,
            started_at: started.map_or_else(|_| String::new(), |at| at.to_string()),
        }
    }
}

/// The mode with what is wrong with the licence behind it.
#[must_use]
pub fn hub_mode(mode: &str, standing: Standing) -> String {
    match standing {
        Standing::Valid => mode.to_owned(),
        wrong => format!("{mode}-{}", wrong.as_str()),
    }
}

/// What the vendor answered, as far as it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// A renewed licence, not looked at yet.
    pub license: Option<String>,
    /// The version published last.
    pub latest_version: Option<String>,
    /// A message for people: plain text, to be escaped where it is shown.
    pub message: Option<String>,
}

/// An answer that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Not the status of a success.
    #[error("the license server answered status {0}")]
    Status(u16),
    /// No JSON object of the known shape.
    #[error("the license server's answer is no JSON of the known shape")]
    Shape,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(alias = "jwt")]
    license: Option<String>,
    hub_version: Option<String>,
    message: Option<String>,
}

impl Answer {
    /// Reads an answer. An empty one is a good one.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn read(status: u16, body: &[u8]) -> Result<Self, AnswerError> {
        if !(200..300).contains(&status) {
            return Err(AnswerError::Status(status));
        }
        if body.is_empty() {
            return Ok(Self::default());
        }
        // An object by name: serde would take a list for a struct, too.
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(body).map_err(|_| AnswerError::Shape)?;
        let raw: Raw = serde_json::from_value(object.into()).map_err(|_| AnswerError::Shape)?;
        let given = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
        Ok(Self {
            license: given(raw.license).filter(|text| text.len() <= TOKEN_BYTES_MAX),
            latest_version: given(raw.hub_version).map(|text| {
                let plain = text.chars().filter(|c| !c.is_control());
                plain.take(VERSION_CHARS_MAX).collect()
            }),
            message: given(raw.message).map(|text| plain(&text)),
        })
    }
}

/// Without control characters, cut to its bound between two characters.
fn plain(text: &str) -> String {
    let mut kept = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if kept.len() + c.len_utf8() > MESSAGE_BYTES_MAX {
            break;
        }
        kept.push(c);
    }
    kept
}

/// Milliseconds until the next heartbeat: the first within ten minutes, then
/// every six hours within a tenth. `random` is any number.
#[must_use]
pub fn next_delay_ms(is_first: bool, random: u64) -> u64 {
    if is_first {
        return random % FIRST_MS_MAX;
    }
    let spread = PERIOD_MS / 10;
    PERIOD_MS - spread + random % (2 * spread + 1)
}

impl Payload {
    /// The exact bytes that are sent.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_key_set_is_seven_in_every_standing() {
        for standing in Standing::ALL {
            let payload = Payload::from(Beat {
                license_id: "lic-1",
                version: "0.1.0",
                mode: "self-hosted",
                standing,
                org_name: "Default",
                clusters: 3,
                audit_rows: 7,
                started_unix_ms: 1_763_683_200_000,
            });
            let value: serde_json::Value = serde_json::from_str(&payload.to_json()).unwrap();
            let keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            let mut wanted = [
                "license_id",
                "hub_version",
                "hub_mode",
                "org_name",
                "cluster_count",
                "audit_event_count_24h",
                "started_at",
            ];
            wanted.sort_unstable();
            let mut keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            keys.sort_unstable();
            assert_eq!(keys, wanted);
            assert_eq!(value["started_at"], "2025-11-21T00:00:00Z");
        }
        assert_eq!(hub_mode("self-hosted", Standing::Valid), "self-hosted");
        assert_eq!(
            hub_mode("self-hosted", Standing::Unlicensed),
            "self-hosted-unlicensed"
        );
        assert_eq!(
            hub_mode("self-hosted", Standing::Expired),
            "self-hosted-expired"
        );
        assert_eq!(
            hub_mode("self-hosted", Standing::Invalid),
            "self-hosted-invalid"
        );
    }

    #[test]
    fn an_answer_is_taken_as_far_as_it_is_sound() {
        assert_eq!(Answer::read(204, b"").unwrap(), Answer::default());
        assert_eq!(Answer::read(500, b"{}"), Err(AnswerError::Status(500)));
        assert_eq!(Answer::read(302, b""), Err(AnswerError::Status(302)));
        for bad in [
            &b"<html>"[..],
            b"[1]",
            br#"["a","b","c"]"#,
            br#"{"message": 7}"#,
            b"\xff",
        ] {
            assert_eq!(Answer::read(200, bad), Err(AnswerError::Shape));
        }
        let long = "\u{e9}".repeat(600);
        let body =
            format!(r#"{{"license":"a.b.c","hub_version":"0.2.0\u001b[2J","message":"{long}"}}"#);
        let answer = Answer::read(200, body.as_bytes()).unwrap();
        assert_eq!(answer.license.as_deref(), Some("a.b.c"));
        assert_eq!(answer.latest_version.as_deref(), Some("0.2.0[2J"));
        assert_eq!(answer.message.unwrap().len(), 1024);
        let huge = format!(r#"{{"license":"{}"}}"#, "a".repeat(TOKEN_BYTES_MAX + 1));
        assert_eq!(Answer::read(200, huge.as_bytes()).unwrap().license, None);
    }

    proptest! {
        #[test]
        fn delays_keep_to_their_bounds(random: u64) {
            prop_assert!(next_delay_ms(true, random) < FIRST_MS_MAX);
            let later = next_delay_ms(false, random);
            prop_assert!((PERIOD_MS * 9 / 10..=PERIOD_MS * 11 / 10).contains(&later));
        }

        #[test]
        fn no_answer_panics(status: u16, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Answer::read(status, &body);
        }
    }
}
