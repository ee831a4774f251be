//! Access policies of the file. Whether a policy can be meant is for its readers to judge.

use culvert_proto::limits::{ACCESS_GROUPS_MAX, ACCESS_TEXT_BYTES_MAX};
use culvert_proto::update::{Access, Grant, Mode, Tier, UserClaim};

use super::check::{Place, word};
use super::personal::time;
use super::{AccessEntry, At, Entry, GrantEntry};

/// The policy of `entry`, where it has one that is right.
pub(super) fn access(entry: &Entry, place: &mut Place<'_>) -> Option<At<Access>> {
    let At { value, line } = entry.access.as_ref()?;
    Some(At {
        value: read(value, *line, place)?,
        line: *line,
    })
}

fn read(written: &AccessEntry, line: u64, place: &mut Place<'_>) -> Option<Access> {
    let modes = "tier, shared, raw";
    let mode = word(
        written.mode.as_ref(),
        "access.mode",
        Mode::parse,
        modes,
        place,
    );
    let claim = written.username_claim.as_ref();
    let claim = word(
        claim,
        "access.usernameClaim",
        UserClaim::parse,
        "sub, email",
        place,
    );
    for (field, count) in [
        ("access.grants", written.grants.len()),
        ("access.allowedGroups", written.allowed_groups.len()),
    ] {
        if count > ACCESS_GROUPS_MAX {
            place.say(
                line,
                field,
                format!("are {count}; at most {ACCESS_GROUPS_MAX}"),
            );
            return None;
        }
    }
    let groups = written.allowed_groups.iter().chain(&written.prefix);
    for at in groups {
        short(at, "access", place)?;
    }
    let mut grants = Vec::with_capacity(written.grants.len());
    for held in &written.grants {
        grants.push(grant(held, place)?);
    }
    let allowed = written.allowed_groups.iter();
    Some(Access {
        mode: mode.unwrap_or_default(),
        grants,
        prefix: written.prefix.as_ref().map(|at| at.value.as_str().into()),
        allowed_groups: allowed.map(|at| at.value.as_str().into()).collect(),
        read_only: written.read_only.as_ref().is_some_and(|at| at.value),
        user_claim: claim.unwrap_or_default(),
    })
}

fn grant(written: &GrantEntry, place: &mut Place<'_>) -> Option<Grant> {
    short(&written.group, "access.grants.group", place)?;
    let tiers = "read, triage, write, maintain, admin";
    let tier = Some(&written.tier);
    let tier = word(tier, "access.grants.tier", Tier::parse, tiers, place)?;
    let not_after_unix_ms = match &written.expires {
        Some(at) => Some(time(at, "access.grants.expires", place)?),
        None => None,
    };
    Some(Grant {
        group: written.group.value.as_str().into(),
        tier,
        not_after_unix_ms,
    })
}

fn short(at: &At<String>, field: &str, place: &mut Place<'_>) -> Option<()> {
    if (1..=ACCESS_TEXT_BYTES_MAX).contains(&at.value.len()) {
        return Some(());
    }
    let why = format!("holds a group or prefix that is not of 1 to {ACCESS_TEXT_BYTES_MAX} bytes");
    place.say(at.line, field, why);
    None
}
