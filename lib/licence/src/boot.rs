//! What is decided when control starts: which licence counts, and what is logged.

use jiff::Timestamp;

use crate::keys::{KeySet, placeholder_line};
use crate::verify::{License, claimed_id, verify};
use crate::{Invalid, Standing, vendor};

/// Where a licence was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The setting `license-key`.
    Env,
    /// A file.
    File,
    /// A renewed one that the vendor's answer to a heartbeat carried.
    Stored,
}

/// A text that may be a licence.
pub struct Candidate {
    /// Where it was found.
    pub source: Source,
    /// As it was found.
    pub text: String,
}

/// How loud a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// As wanted.
    Info,
    /// Somebody should look.
    Warn,
}

/// A line of the log, to the letter; the licence's facts stand on the same line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// How loud.
    pub severity: Severity,
    /// The text.
    pub text: &'static str,
}

/// The licence as control has it until it starts again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The verdict when control started; [`Boot::standing_at`] follows the clock.
    pub standing: Standing,
    /// What a believed licence says.
    pub license: Option<License>,
    /// Where it was found.
    pub source: Option<Source>,
    /// Why none is believed, where there is one.
    pub why: Option<Invalid>,
    /// The id that it claims, believed or not; empty if none.
    pub claimed_id: String,
    /// What is logged.
    pub lines: Vec<Line>,
}

/// Judges every candidate: of those that are believed the one that ends last
/// counts, on a tie setting before file before stored (D-22).
#[must_use]
pub fn boot(candidates: &[Candidate], keys: &KeySet, mode: &str, now_unix_s: u64) -> Boot {
    let mut best: Option<(License, Source)> = None;
    let mut refused: Option<(&Candidate, Invalid)> = None;
    for candidate in candidates.iter().filter(|it| !it.text.trim().is_empty()) {
        match verify(&candidate.text, keys, now_unix_s) {
            Ok(license) => {
                let is_better = best.as_ref().is_none_or(|(held, source)| {
                    let (ours, theirs) = (license.expires_unix_s, held.expires_unix_s);
                    ours > theirs || (ours == theirs && candidate.source < *source)
                });
                if is_better {
                    best = Some((license, candidate.source));
                }
            }
            Err(why) => {
                if refused.is_none_or(|(held, _)| candidate.source < held.source) {
                    refused = Some((candidate, why));
                }
            }
        }
    }
    let (license, source, why, claimed_id) = match (best, refused) {
        (Some((license, source)), _) => {
            let id = license.id.clone();
            (Some(license), Some(source), None, id)
        }
        (None, Some((candidate, why))) => {
            let id = claimed_id(&candidate.text);
            (None, Some(candidate.source), Some(why), id)
        }
        (None, None) => (None, None, None, String::new()),
    };
    let mut boot = Boot {
        standing: Standing::Unlicensed,
        license,
        source,
        why,
        claimed_id,
        lines: Vec::new(),
    };
    boot.standing = boot.standing_at(now_unix_s);
    boot.lines = lines(boot.standing, keys, mode);
    boot
}

impl Boot {
    /// The verdict at a later time: a licence ends while control runs, too.
    #[must_use]
    pub fn standing_at(&self, now_unix_s: u64) -> Standing {
        match (&self.license, self.why) {
            (Some(license), _) if now_unix_s >= license.expires_unix_s => Standing::Expired,
            (Some(_), _) => Standing::Valid,
            (None, Some(_)) => Standing::Invalid,
            (None, None) => Standing::Unlicensed,
        }
    }
}

impl License {
    /// Its end as RFC 3339.
    #[must_use]
    pub fn expiry(&self) -> String {
        let seconds = i64::try_from(self.expires_unix_s).unwrap_or(i64::MAX);
        Timestamp::from_second(seconds).map_or_else(|_| String::new(), |at| at.to_string())
    }
}

impl Source {
    /// The word in log and API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Env => "setting",
            Self::File => "file",
            Self::Stored => "stored",
        }
    }
}

fn lines(standing: Standing, keys: &KeySet, mode: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = placeholder_line(keys).map(warn).into_iter().collect();
    match standing {
        Standing::Valid => lines.push(Line {
            severity: Severity::Info,
            text: vendor::LINE_VERIFIED,
        }),
        Standing::Expired => lines.push(warn(vendor::LINE_EXPIRED)),
        Standing::Invalid => lines.push(warn(vendor::LINE_FAILED)),
        Standing::Unlicensed if mode == vendor::SELF_HOSTED => {
            lines.push(warn(vendor::LINE_NONE));
        }
        Standing::Unlicensed => {}
    }
    lines
}

fn warn(text: &'static str) -> Line {
    Line {
        severity: Severity::Warn,
        text,
    }
}
