//! `culvert cluster access`.

use clap::Args;

/// Who may enter.
#[derive(Args)]
pub struct Access {
    /// The cluster's id.
    pub id: String,
    /// How people become identities of the cluster.
    #[arg(long, value_parser = ["tier", "shared", "raw"], default_value = "tier")]
    pub mode: String,
    /// What a group may do, or one person as user:SUBJECT, and until when (RFC 3339); may be
    /// repeated. Tiers: read, triage, write, maintain, admin.
    #[arg(long = "grant", value_name = "GROUP=TIER[@UNTIL]", value_parser = grant)]
    pub grants: Vec<Grant>,
    /// Who may enter in mode shared, may be repeated.
    #[arg(long = "allow-group", value_name = "GROUP")]
    pub allowed_groups: Vec<String>,
    /// In front of the groups that are sent [default: culvert-tier: or culvert:].
    #[arg(long)]
    pub prefix: Option<String>,
    /// Only what reads passes, whatever the grants say.
    #[arg(long)]
    pub read_only: bool,
    /// What names people upstream.
    #[arg(long, value_parser = ["sub", "email"], default_value = "sub")]
    pub username_claim: String,
}

/// One grant as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The group.
    pub group: String,
    /// Its tier, by its word.
    pub tier: String,
    /// RFC 3339.
    pub until: Option<String>,
}

/// The last `=` counts: groups may hold one.
fn grant(text: &str) -> Result<Grant, String> {
    let form = || "wanted GROUP=TIER or GROUP=TIER@2027-01-31T12:00:00Z".to_owned();
    let (group, right) = text.rsplit_once('=').ok_or_else(form)?;
    let (tier, until) = match right.split_once('@') {
        Some((tier, until)) => (tier, Some(until.to_owned())),
        None => (right, None),
    };
    if group.is_empty() || culvert_proto::update::Tier::parse(tier).is_none() {
        return Err(form());
    }
    Ok(Grant {
        group: group.to_owned(),
        tier: tier.to_owned(),
        until,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_name_group_tier_and_end() {
        let end = "2027-01-31T12:00:00Z";
        let dated = format!("cn=ops=read@{end}");
        let read = |text| grant(text).map(|it| (it.group, it.tier, it.until));
        let of = |group: &str, tier: &str, until: Option<&str>| {
            Ok((group.to_owned(), tier.to_owned(), until.map(str::to_owned)))
        };
        assert_eq!(read("ops=write"), of("ops", "write", None));
        assert_eq!(read(&dated), of("cn=ops", "read", Some(end)));
        assert_eq!(
            read("user:ana@x.test=admin"),
            of("user:ana@x.test", "admin", None)
        );
        for bad in ["ops", "=read", "ops=root", "ops="] {
            assert!(grant(bad).is_err(), "{bad}");
        }
    }
}
