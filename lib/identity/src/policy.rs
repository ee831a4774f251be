//! As whom somebody acts in a cluster: modes `shared`, `tier` and `raw` (P-18).

use std::collections::BTreeMap;

use crate::Tier;

/// Groups of a person that are looked at.
pub const GROUPS_MAX: usize = 512;
/// Longest user or group that is sent upstream, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Names that Kubernetes keeps for itself; nobody acts as one of them.
const RESERVED: &str = "system:";

/// How people of an identity provider become identities of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nobody is impersonated: all who may enter act as the agent.
    Shared,
    /// The group of the person's highest tier.
    #[default]
    Tier,
    /// The person's own groups behind a prefix.
    Raw,
}

/// A group's right in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// How much.
    pub tier: Tier,
    /// Over from then on, milliseconds since 1970; `None` = without end.
    pub not_after_unix_ms: Option<u64>,
}

/// The policy of a cluster, checked by [`Policy::checked`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The mode.
    pub mode: Mode,
    /// Groups and what they may do.
    pub grants: BTreeMap<String, Vec<Grant>>,
    /// In front of what is sent: `culvert-tier:` or `culvert:` unless another is asked for.
    pub prefix: Option<String>,
    /// Who may enter in mode `shared`.
    pub allowed_groups: Vec<String>,
    /// Only what reads: no grant gives more.
    pub read_only: bool,
}

/// A policy that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Everybody would act as the agent.
    #[error("mode shared wants allowed groups: without them everybody acts as the agent")]
    SharedForAll,
    /// Groups of the provider would be groups of the cluster.
    #[error("the prefix is empty: groups of the identity provider would be those of the cluster")]
    EmptyPrefix,
    /// It would make identities of Kubernetes itself, or no header at all.
    #[error("the prefix {0:?} begins with system: or holds what no header holds")]
    BadPrefix(String),
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Person<'a> {
    /// The name that is impersonated: the subject, or another claim that was asked for.
    pub user: &'a str,
    /// Groups, as the identity provider says.
    pub groups: &'a [String],
}

/// As whom the request goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// As the agent itself.
    Agent,
    /// `Impersonate-User` and `Impersonate-Group`; neither is ever empty.
    Impersonated {
        /// The user.
        user: String,
        /// The groups, sorted, each once.
        groups: Vec<String>,
        /// How much they may do, where the mode has tiers.
        tier: Option<Tier>,
    },
}

/// Why somebody does not enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is no name.
    #[error("the identity is empty")]
    Empty,
    /// The name is one of Kubernetes' own.
    #[error("identities that begin with system: are never passed on")]
    Reserved,
    /// The name holds what no header holds, or is too long.
    #[error("the identity holds control characters, or is longer than {NAME_BYTES_MAX} bytes")]
    Unprintable,
    /// No group has a right here.
    #[error("no group of this person has a right in this cluster")]
    NoTier,
    /// No group is allowed in.
    #[error("no group of this person is allowed in")]
    NotAllowed,
}

impl Mode {
    /// The word in settings and API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Tier => "tier",
            Self::Raw => "raw",
        }
    }
}

impl Policy {
    /// The policy, if it can be meant.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn checked(self) -> Result<Self, PolicyError> {
        if self.mode == Mode::Shared && self.allowed_groups.is_empty() {
            return Err(PolicyError::SharedForAll);
        }
        match &self.prefix {
            Some(prefix) if prefix.trim().is_empty() => Err(PolicyError::EmptyPrefix),
            Some(prefix) if name(prefix).is_err() => Err(PolicyError::BadPrefix(prefix.clone())),
            _ => Ok(self),
        }
    }

    /// The highest tier of a person's groups now.
    #[must_use]
    pub fn tier(&self, groups: &[String], now_unix_ms: u64) -> Option<Tier> {
        let grants = groups.iter().take(GROUPS_MAX);
        let grants = grants.filter_map(|group| self.grants.get(group)).flatten();
        let live =
            grants.filter(|grant| grant.not_after_unix_ms.is_none_or(|end| now_unix_ms < end));
        let highest = live.map(|grant| grant.tier).max()?;
        Some(if self.read_only { Tier::Read } else { highest })
    }

    /// As whom `person` acts, at `now_unix_ms`.
    ///
    /// # Errors
    /// [`Denied`]: nothing is sent upstream.
    pub fn decide(&self, person: Person<'_>, now_unix_ms: u64) -> Result<Identity, Denied> {
        let user = name(person.user)?;
        match self.mode {
            Mode::Shared => {
                let mut groups = person.groups.iter().take(GROUPS_MAX);
                let is_allowed = groups.any(|group| self.allowed_groups.contains(group));
                is_allowed
                    .then_some(Identity::Agent)
                    .ok_or(Denied::NotAllowed)
            }
            Mode::Tier => {
                let tier = self
                    .tier(person.groups, now_unix_ms)
                    .ok_or(Denied::NoTier)?;
                let prefix = self.prefix.as_deref().unwrap_or("culvert-tier:");
                Ok(Identity::Impersonated {
                    user: user.to_owned(),
                    groups: vec![format!("{prefix}{}", tier.as_str())],
                    tier: Some(tier),
                })
            }
            Mode::Raw => self.raw(user, person.groups),
        }
    }

    fn raw(&self, user: &str, groups: &[String]) -> Result<Identity, Denied> {
        let prefix = self.prefix.as_deref().unwrap_or("culvert:");
        let groups = groups.iter().take(GROUPS_MAX);
        // Before and behind the prefix: a group that claims to be Kubernetes' own is left out.
        let sound = groups.filter(|group| name(group).is_ok());
        let mut groups: Vec<String> = sound
            .map(|group| format!("{prefix}{group}"))
            .filter(|group| name(group).is_ok())
            .collect();
        groups.sort_unstable();
        groups.dedup();
        if groups.is_empty() {
            return Err(Denied::NotAllowed);
        }
        Ok(Identity::Impersonated {
            user: user.to_owned(),
            groups,
            tier: None,
        })
    }
}

/// A name that may be sent upstream.
fn name(text: &str) -> Result<&str, Denied> {
    if text.trim().is_empty() {
        return Err(Denied::Empty);
    }
    let is_sound = text.len() <= NAME_BYTES_MAX
        && text.trim() == text
        && !text.chars().any(|c| c.is_control() || c == '\u{feff}');
    if !is_sound {
        return Err(Denied::Unprintable);
    }
    let start = text.get(..RESERVED.len()).unwrap_or_default();
    if start.eq_ignore_ascii_case(RESERVED) {
        return Err(Denied::Reserved);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_763_683_200_000;

    fn policy() -> Policy {
        let grant = |tier, end| Grant {
            tier,
            not_after_unix_ms: end,
        };
        Policy {
            grants: [
                ("dev".to_owned(), vec![grant(Tier::Read, None)]),
                (
                    "ops".to_owned(),
                    vec![
                        grant(Tier::Triage, None),
                        grant(Tier::Admin, Some(NOW + 1_000)),
                    ],
                ),
            ]
            .into(),
            ..Policy::default()
        }
    }

    fn decide(policy: &Policy, user: &str, groups: &[&str], now: u64) -> Result<Identity, Denied> {
        let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        let groups = &groups[..];
        policy.decide(Person { user, groups }, now)
    }

    fn as_tier(user: &str, tier: Tier, group: &str) -> Result<Identity, Denied> {
        Ok(Identity::Impersonated {
            user: user.to_owned(),
            groups: vec![group.to_owned()],
            tier: Some(tier),
        })
    }

    #[test]
    fn the_highest_live_tier_counts_and_without_one_nobody_enters() {
        let policy = policy();
        let ana = |groups: &[&str], now| decide(&policy, "ana", groups, now);
        let read = as_tier("ana", Tier::Read, "culvert-tier:read");
        assert_eq!(ana(&["dev"], NOW), read);
        assert_eq!(
            ana(&["dev", "ops"], NOW),
            as_tier("ana", Tier::Admin, "culvert-tier:admin")
        );
        let after = as_tier("ana", Tier::Triage, "culvert-tier:triage");
        assert_eq!(ana(&["dev", "ops"], NOW + 1_000), after);
        assert_eq!(ana(&[], NOW), Err(Denied::NoTier));
        assert_eq!(ana(&["Dev", "dev "], NOW), Err(Denied::NoTier));
        let only = Policy {
            read_only: true,
            prefix: Some("periscope-tier:".to_owned()),
            ..policy.clone()
        };
        let seen = decide(&only, "ana", &["ops"], NOW);
        assert_eq!(seen, as_tier("ana", Tier::Read, "periscope-tier:read"));
    }

    #[test]
    fn shared_wants_an_allowed_group_and_raw_a_prefix() {
        let shared = Policy {
            mode: Mode::Shared,
            ..Policy::default()
        };
        assert_eq!(shared.clone().checked(), Err(PolicyError::SharedForAll));
        let shared = Policy {
            allowed_groups: vec!["ops".to_owned()],
            ..shared
        };
        let shared = shared.checked().unwrap();
        assert_eq!(decide(&shared, "ana", &["ops"], NOW), Ok(Identity::Agent));
        assert_eq!(
            decide(&shared, "ana", &["dev"], NOW),
            Err(Denied::NotAllowed)
        );
        for (prefix, verdict) in [
            ("", Err(PolicyError::EmptyPrefix)),
            (" ", Err(PolicyError::EmptyPrefix)),
            ("system:", Err(PolicyError::BadPrefix("system:".to_owned()))),
            (
                "SYSTEM:x:",
                Err(PolicyError::BadPrefix("SYSTEM:x:".to_owned())),
            ),
            ("a\nb", Err(PolicyError::BadPrefix("a\nb".to_owned()))),
            ("corp:", Ok(())),
        ] {
            let raw = Policy {
                mode: Mode::Raw,
                prefix: Some(prefix.to_owned()),
                ..Policy::default()
            };
            assert_eq!(raw.checked().map(|_| ()), verdict);
        }
        let raw = Policy {
            mode: Mode::Raw,
            ..Policy::default()
        };
        let groups = ["ops", "system:masters", "", "dev", "ops", "bad\r\nX: y"];
        let seen = decide(&raw, "ana", &groups, NOW);
        let Ok(Identity::Impersonated { groups, tier, .. }) = seen else {
            panic!("{seen:?}")
        };
        assert_eq!(
            (groups, tier),
            (
                vec!["culvert:dev".to_owned(), "culvert:ops".to_owned()],
                None
            )
        );
        assert_eq!(
            decide(&raw, "ana", &["system:masters"], NOW),
            Err(Denied::NotAllowed)
        );
    }

    #[test]
    fn no_identity_is_empty_reserved_or_unprintable() {
        for (user, why) in [
            ("", Denied::Empty),
            (" \t", Denied::Empty),
            ("system:admin", Denied::Reserved),
            ("System:serviceaccount:x:y", Denied::Reserved),
            ("ana\r\nImpersonate-User: root", Denied::Unprintable),
            ("ana ", Denied::Unprintable),
            (&"a".repeat(257), Denied::Unprintable),
        ] {
            assert_eq!(decide(&policy(), user, &["ops"], NOW), Err(why), "{user:?}");
        }
    }

    #[test]
    fn tiers_have_their_order_words_and_radar_roles() {
        assert!(Tier::ALL.is_sorted());
        for tier in Tier::ALL {
            assert_eq!(Tier::parse(tier.as_str()), Some(tier));
        }
        let roles = Tier::ALL.map(Tier::radar_role);
        assert_eq!(roles, ["viewer", "member", "member", "owner", "owner"]);
        assert_eq!(Tier::parse("Admin"), None);
    }

    proptest! {
        #[test]
        fn what_is_sent_is_always_sound(
            user in ".{0,40}", groups in prop::collection::vec("(system:)?.{0,12}", 0..6), raw: bool,
        ) {
            let policy = Policy {
                mode: if raw { Mode::Raw } else { Mode::Tier },
                grants: groups.iter().map(|group| (group.clone(), vec![Grant { tier: Tier::Read, not_after_unix_ms: None }])).collect(),
                ..Policy::default()
            };
            let person = Person { user: &user, groups: &groups };
            if let Ok(Identity::Impersonated { user, groups, .. }) = policy.decide(person, NOW) {
                prop_assert!(!groups.is_empty());
                for sent in groups.iter().chain([&user]) {
                    prop_assert!(!sent.trim().is_empty());
                    prop_assert!(!sent.to_ascii_lowercase().starts_with("system:"));
                    prop_assert!(!sent.chars().any(char::is_control));
                }
            }
        }
    }
}
