//! Personal tokens of the file.

use std::path::Path;
use std::sync::Arc;

use culvert_proto::limits::{GRANTS_PER_TOKEN_MAX, PERSONAL_TOKENS_PER_CLUSTER_MAX};
use culvert_proto::token::Digest;
use culvert_proto::update::{EVERY_SERVICE, PersonalToken, ServiceName};

use super::check::{Place, Secrets, file_id};
use super::{At, Entry, PersonalEntry, text_problem};

/// The personal tokens of `entry` that are right.
pub(super) fn tokens(
    entry: &Entry,
    secrets: &dyn Secrets,
    place: &mut Place<'_>,
) -> Vec<PersonalToken> {
    let written = &entry.personal_tokens;
    if written.len() > PERSONAL_TOKENS_PER_CLUSTER_MAX {
        let why = format!(
            "are {}; at most {PERSONAL_TOKENS_PER_CLUSTER_MAX}",
            written.len()
        );
        place.say(entry.id.line, "personalTokens", why);
    }
    let mut tokens: Vec<PersonalToken> = Vec::new();
    for written in written {
        let Some(token) = token(written, secrets, place) else {
            continue;
        };
        if tokens.iter().any(|other| other.digest == token.digest) {
            place.say(
                written.principal.line,
                "personalTokens",
                "list this token twice",
            );
        }
        tokens.push(token);
    }
    tokens
}

fn token(
    written: &PersonalEntry,
    secrets: &dyn Secrets,
    place: &mut Place<'_>,
) -> Option<PersonalToken> {
    let line = written.principal.line;
    let principal = &written.principal.value;
    let unfit = match principal.is_empty() {
        true => Some("is empty".to_owned()),
        false => text_problem(principal),
    };
    if let Some(why) = unfit {
        place.say(line, "personalTokens.principal", why);
    }
    let services = services(written, place);
    let digest = digest(written, secrets, place);
    let not_after_unix_ms = match &written.expires {
        None => None,
        Some(at) => time(at, "personalTokens.expires", place),
    };
    let digest = digest?;
    Some(PersonalToken {
        digest,
        id: file_id(&digest).into(),
        principal: principal.as_str().into(),
        not_after_unix_ms,
        services,
    })
}

/// The time that `at` names, wall clock ms.
pub(super) fn time(at: &At<String>, field: &str, place: &mut Place<'_>) -> Option<u64> {
    let time = at.value.parse::<jiff::Timestamp>();
    let time = time.map_err(|_| "is no RFC 3339 time, for example 2027-01-31T12:00:00Z");
    let time = place.keep(at.line, field, time)?;
    Some(u64::try_from(time.as_millisecond()).unwrap_or_default())
}

fn services(written: &PersonalEntry, place: &mut Place<'_>) -> Vec<Arc<str>> {
    const FIELD: &str = "personalTokens.services";
    let count = written.services.len();
    if !(1..=GRANTS_PER_TOKEN_MAX).contains(&count) {
        let why = format!("are {count}; 1 to {GRANTS_PER_TOKEN_MAX}, \"*\" for every one");
        place.say(written.principal.line, FIELD, why);
    }
    for at in &written.services {
        if at.value != EVERY_SERVICE
            && let Err(why) = ServiceName::new(&at.value)
        {
            place.say(
                at.line,
                FIELD,
                format!("holds no {why}, \"*\" for every one"),
            );
        }
    }
    let names = written.services.iter();
    names.map(|at| at.value.as_str().into()).collect()
}

fn digest(written: &PersonalEntry, secrets: &dyn Secrets, place: &mut Place<'_>) -> Option<Digest> {
    match (&written.digest, &written.token_file) {
        (Some(hex), None) => {
            let digits = hex.value.strip_prefix("sha256:").unwrap_or(&hex.value);
            let digest = Digest::from_hex(digits);
            if digest.is_none() {
                let why = "is not sha256: and 64 hexadecimal digits";
                place.say(hex.line, "personalTokens.digest", why);
            }
            digest
        }
        (None, Some(file)) => {
            let path = Path::new(&file.value);
            let read = match path.is_absolute() {
                true => secrets.personal(path),
                false => Err("is no absolute path".to_owned()),
            };
            place.keep(file.line, "personalTokens.tokenFile", read)
        }
        (digest, file) => {
            let both = digest.is_some() && file.is_some();
            let seen = if both { "both" } else { "neither" };
            let why = format!("want one of digest and tokenFile; {seen} given");
            place.say(written.principal.line, "personalTokens", why);
            None
        }
    }
}
