//! The access policy of a cluster, as API and store write it.

use culvert_identity::Policy;
use culvert_proto::update::{self, Mode, Tier, UserClaim};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// Which people may enter a cluster, and as whom. The default lets nobody in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ClusterAccess)]
pub struct Access {
    /// tier, shared or raw.
    #[serde(default, serialize_with = "write_mode", deserialize_with = "read_mode")]
    #[schema(value_type = String, example = "tier")]
    pub mode: Mode,
    /// Groups, or single people, and what they may do.
    #[serde(default)]
    pub grants: Vec<Grant>,
    /// In front of the groups that are sent; null = culvert-tier: or culvert:.
    #[serde(default)]
    pub prefix: Option<String>,
    /// Who may enter in mode shared.
    #[serde(default)]
    pub allowed_groups: Vec<String>,
    /// Only what reads passes, whatever the grants say.
    #[serde(default)]
    pub read_only: bool,
    /// What names people upstream: sub, or email where it was verified.
    #[serde(
        default,
        serialize_with = "write_claim",
        deserialize_with = "read_claim"
    )]
    #[schema(value_type = String, example = "sub")]
    pub username_claim: UserClaim,
}

/// The right of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AccessGrant)]
pub struct Grant {
    /// The group, or one person as user:SUBJECT.
    pub group: String,
    /// read, triage, write, maintain or admin.
    #[serde(serialize_with = "write_tier", deserialize_with = "read_tier")]
    #[schema(value_type = String, example = "read")]
    pub tier: Tier,
    /// Over from then on, RFC 3339; null = no end.
    #[serde(default, serialize_with = "write_time", deserialize_with = "read_time")]
    #[schema(value_type = Option<String>, example = "2027-01-31T12:00:00Z")]
    pub expires_at: Option<u64>,
}

impl Access {
    /// What is wrong with it.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let refused = Policy::from(&self.to_state()).checked().err();
        refused.map(|why| why.to_string())
    }

    /// As data planes learn it.
    #[must_use]
    pub fn to_state(&self) -> update::Access {
        let grants = self.grants.iter().map(|grant| update::Grant {
            group: grant.group.as_str().into(),
            tier: grant.tier,
            not_after_unix_ms: grant.expires_at,
        });
        let allowed = self.allowed_groups.iter();
        update::Access {
            mode: self.mode,
            grants: grants.collect(),
            prefix: self.prefix.as_deref().map(Into::into),
            allowed_groups: allowed.map(|group| group.as_str().into()).collect(),
            read_only: self.read_only,
            user_claim: self.username_claim,
        }
    }
}

impl From<update::Access> for Access {
    fn from(access: update::Access) -> Self {
        let grants = access.grants.into_iter().map(|grant| Grant {
            group: grant.group.to_string(),
            tier: grant.tier,
            expires_at: grant.not_after_unix_ms,
        });
        let allowed = access.allowed_groups.into_iter();
        Self {
            mode: access.mode,
            grants: grants.collect(),
            prefix: access.prefix.map(|prefix| prefix.to_string()),
            allowed_groups: allowed.map(|group| group.to_string()).collect(),
            read_only: access.read_only,
            username_claim: access.user_claim,
        }
    }
}

type Read<'de, D, T> = Result<T, <D as Deserializer<'de>>::Error>;

fn read_word<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    known: impl Fn(&str) -> Option<T>,
    wanted: &str,
) -> Read<'de, D, T> {
    let word = String::deserialize(deserializer)?;
    known(&word).ok_or_else(|| D::Error::custom(format!("{word:?} is none of {wanted}")))
}

fn read_mode<'de, D: Deserializer<'de>>(deserializer: D) -> Read<'de, D, Mode> {
    read_word(deserializer, Mode::parse, "tier, shared, raw")
}

fn read_claim<'de, D: Deserializer<'de>>(deserializer: D) -> Read<'de, D, UserClaim> {
    read_word(deserializer, UserClaim::parse, "sub, email")
}

fn read_tier<'de, D: Deserializer<'de>>(deserializer: D) -> Read<'de, D, Tier> {
    let wanted = "read, triage, write, maintain, admin";
    read_word(deserializer, Tier::parse, wanted)
}

fn read_time<'de, D: Deserializer<'de>>(deserializer: D) -> Read<'de, D, Option<u64>> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let time: Result<jiff::Timestamp, _> = text.parse();
    let ms = time.ok().map(jiff::Timestamp::as_millisecond);
    let ms = ms
        .and_then(|ms| u64::try_from(ms).ok())
        .filter(|ms| *ms > 0);
    let why = || D::Error::custom(format!("{text:?} is no RFC 3339 time after 1970"));
    ms.map(Some).ok_or_else(why)
}

fn write_mode<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(mode.as_str())
}

fn write_claim<S: Serializer>(claim: &UserClaim, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(claim.as_str())
}

fn write_tier<S: Serializer>(tier: &Tier, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(tier.as_str())
}

fn write_time<S: Serializer>(unix_ms: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    let time = unix_ms.and_then(|ms| i64::try_from(ms).ok());
    let time = time.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map(|time| time.to_string()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_api_says_is_what_data_planes_learn_and_back() {
        let written = json!({
            "mode": "raw", "prefix": "corp:", "read_only": true, "username_claim": "email",
            "allowed_groups": ["dev"],
            "grants": [{"group": "ops", "tier": "maintain", "expires_at": "2027-01-31T12:00:00Z"}],
        });
        let read: Access = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), written);
        let state = read.to_state();
        assert_eq!(state.grants[0].not_after_unix_ms, Some(1_801_396_800_000));
        assert_eq!(
            (state.mode, state.user_claim),
            (Mode::Raw, UserClaim::Email)
        );
        assert_eq!(Access::from(state), read);
        assert_eq!(read.problem(), None);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for wrong in [
            json!({"mode": "open"}),
            json!({"username_claim": "name"}),
            json!({"grants": [{"group": "ops", "tier": "root"}]}),
            json!({"grants": [{"group": "ops", "tier": "read", "expires_at": "soon"}]}),
            json!({"grants": [{"tier": "read"}]}),
            json!({"groups": []}),
        ] {
            assert!(
                serde_json::from_value::<Access>(wrong.clone()).is_err(),
                "{wrong}"
            );
        }
        for (wrong, part) in [
            (json!({"mode": "shared"}), "allowed groups"),
            (json!({"mode": "raw", "prefix": ""}), "prefix"),
            (json!({"prefix": "system:"}), "system:"),
            (json!({"grants": [{"group": "", "tier": "read"}]}), "group"),
        ] {
            let read: Access = serde_json::from_value(wrong.clone()).unwrap();
            let why = read.problem().expect("refused");
            assert!(why.contains(part), "{wrong}: {why}");
        }
    }
}
