//! The clusters file: JSON or YAML, a list of entries, each value with its line.
//!
//! `[{"id": "dev", "token": "...", "targetAddr": "127.0.0.1:6443"}]`. One bad entry
//! makes the file bad; [`check`] names everything that is wrong at once.

mod access;
mod addr;
mod check;
mod claims;
mod personal;
mod problem;
mod routes;
mod words;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

pub use addr::{host_port_problem, listen_addr};
pub use check::{Listed, Secrets, check, file_id};
pub use claims::Claims;
pub use problem::Problems;
pub use routes::route;
pub use words::text_problem;

/// Longest clusters file in bytes.
pub const CLUSTERS_FILE_BYTES_MAX: u64 = 64 << 20;
/// Values that a clusters file may hold: 100,000 entries with nearly every field.
const NODES_MAX: usize = 3_000_000;

/// A value and the line it stands on, from 1.
#[derive(Clone)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its line.
    pub line: u64,
}

/// A token on its way to its digest: no `Debug`.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

/// One cluster as it is written. What is absent is not set.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the keys of the file; docs/clusters-file.md says what they mean"
)]
pub struct Entry {
    pub id: At<String>,
    pub token: Option<At<Secret>>,
    #[serde(default)]
    pub tokens: Vec<At<Secret>>,
    pub target_addr: Option<At<String>>,
    pub target_kind: Option<At<String>>,
    pub name: Option<At<String>>,
    pub enabled: Option<At<bool>>,
    pub policy: Option<At<String>>,
    pub allow_impersonation: Option<At<bool>>,
    pub audit_tunnel: Option<At<bool>>,
    pub max_streams: Option<At<u32>>,
    pub max_requests: Option<At<u32>>,
    pub rate_limit: Option<At<u32>>,
    pub labels: Option<At<BTreeMap<String, String>>>,
    pub access: Option<At<AccessEntry>>,
    #[serde(default)]
    pub routes: Vec<RouteEntry>,
    #[serde(default)]
    pub personal_tokens: Vec<PersonalEntry>,
}

/// One way to a service as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Entry")]
pub struct RouteEntry {
    pub service: At<String>,
    pub tcp: Option<At<String>>,
    pub sealed: Option<At<String>>,
    pub addr: Option<At<String>>,
}

/// Who may enter, as it is written.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Entry")]
pub struct AccessEntry {
    pub mode: Option<At<String>>,
    #[serde(default)]
    pub grants: Vec<GrantEntry>,
    pub prefix: Option<At<String>>,
    #[serde(default)]
    pub allowed_groups: Vec<At<String>>,
    pub read_only: Option<At<bool>>,
    pub username_claim: Option<At<String>>,
}

/// The right of a group as it is written.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Entry")]
pub struct GrantEntry {
    pub group: At<String>,
    pub tier: At<String>,
    pub expires: Option<At<String>>,
}

/// One person's token as it is written: its digest, or the file that holds it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "as for Entry")]
pub struct PersonalEntry {
    pub principal: At<String>,
    pub services: Vec<At<String>>,
    pub digest: Option<At<String>>,
    pub token_file: Option<At<String>>,
    pub expires: Option<At<String>>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        Ok(Self {
            value: spanned.value,
            line: spanned.referenced.line(),
        })
    }
}

/// Reads the file at `path`.
///
/// # Errors
/// What the system says, or as [`parse`].
pub fn read(path: &Path) -> Result<Vec<Entry>, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|why| why.to_string())?;
    file.take(CLUSTERS_FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|why| why.to_string())?;
    if text.len() as u64 > CLUSTERS_FILE_BYTES_MAX {
        return Err(format!("over {CLUSTERS_FILE_BYTES_MAX} bytes"));
    }
    parse(&text)
}

/// Reads the text of a file. JSON is read as the YAML it is.
///
/// ```
/// use culvert_config::clusters::parse;
///
/// let entries = parse("- id: dev\n  maxStreams: 7\n")?;
/// assert_eq!(entries[0].id.value, "dev");
/// let streams = entries[0].max_streams.as_ref().expect("it is set");
/// assert_eq!((streams.value, streams.line), (7, 2));
///
/// let wrong = parse("- id: dev\n  maxStreams: many\n").err().expect("no number");
/// assert!(wrong.contains("line 2"), "{wrong}");
/// # Ok::<(), String>(())
/// ```
///
/// # Errors
/// A sentence with line and column; it never repeats a value, which may be a token.
pub fn parse(text: &str) -> Result<Vec<Entry>, String> {
    // JSON may be indented by tabs, where YAML is not; inside its texts it has none.
    let is_json = text.trim_start().starts_with(['[', '{']);
    let spaced = is_json.then(|| text.replace('\t', " "));
    let budget = serde_saphyr::budget! {
        max_events: 2 * NODES_MAX,
        max_nodes: NODES_MAX,
        max_documents: 1,
    };
    let options = serde_saphyr::options! {
        budget: budget,
        with_snippet: false,
    };
    let text = spaced.as_deref().unwrap_or(text);
    serde_saphyr::from_str_with_options(text, options).map_err(|why| {
        let said = why.to_string();
        said.lines().next().unwrap_or("not YAML").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_yaml_say_the_same_with_their_lines() {
        let json =
            "[\n\t{\"id\": \"a\",\n\t \"token\": \"x\\/y\", \"maxStreams\": 7},\n {\"id\": \"b\"}]";
        let yaml = "- id: a\n\n  token: x/y\n  maxStreams: 7\n- id: b\n";
        for (text, lines) in [(json, [2, 3, 3, 4]), (yaml, [1, 3, 4, 5])] {
            let entries = parse(text).unwrap();
            let token = entries[0].token.as_ref().unwrap();
            let streams = entries[0].max_streams.as_ref().unwrap();
            assert_eq!((token.value.0.as_str(), streams.value), ("x/y", 7));
            let seen = [
                entries[0].id.line,
                token.line,
                streams.line,
                entries[1].id.line,
            ];
            assert_eq!(seen, lines, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_without_the_token() {
        let token = "0123456789abcdef";
        for (text, parts) in [
            ("- id: a\n  tokne: 0123456789abcdef\n", ["line 2", "tokne"]),
            (
                "[{\"id\": \"a\",\n\"tokne\": \"0123456789abcdef\"}]",
                ["line 2", "tokne"],
            ),
            (
                "- id: a\n  maxStreams: 0123456789abcdef\n",
                ["line 2", "u32"],
            ),
            (
                "[{\"id\": \"a\",\n \"token\": [\"0123456789abcdef\"]}]",
                ["line 2", "string"],
            ),
            ("- token: 0123456789abcdef\n", ["line 1", "id"]),
            ("- id: a\n token: [0123456789abcdef", ["line", ""]),
            ("{\"id\": \"a\"}", ["line 1", "sequence"]),
        ] {
            let said = parse(text).err().expect("refused");
            for part in parts {
                assert!(said.contains(part), "{part} is missing from {said:?}");
            }
            assert!(!said.contains(token), "{said}");
        }
    }

    #[test]
    fn ten_thousand_clusters_are_read() {
        let entry = |n: u32| {
            format!(
                "{{\"id\":\"c{n}\",\"token\":\"{n:020}\",\"targetAddr\":\"a:1\",\"labels\":{{\"a\":\"b\"}}}}"
            )
        };
        let all: Vec<_> = (0..10_000).map(entry).collect();
        assert_eq!(
            parse(&format!("[{}]", all.join(","))).unwrap().len(),
            10_000
        );
    }
}
