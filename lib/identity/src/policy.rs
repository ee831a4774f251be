//! As whom somebody acts in a cluster: modes `shared`, `tier` and `raw` (P-18).

use std::collections::BTreeMap;

use culvert_proto::limits::GROUPS_MAX as SENT_GROUPS_MAX;
use culvert_proto::update::{Access, Mode, Tier, UserClaim};

/// Groups of a person that are looked at.
pub const GROUPS_MAX: usize = 512;
/// Longest user or group that is sent upstream, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Names that Kubernetes keeps for itself; nobody acts as one of them.
const RESERVED: &str = "system:";
/// In front of a subject, where one person is meant and not a group. Groups of an identity
/// provider that begin so count for nothing.
pub const USER_GRANT: &str = "user:";

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
    /// What names the person upstream.
    pub user_claim: UserClaim,
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
    #[error("the prefix {0:?} begins with system:, or holds a comma or what no header holds")]
    BadPrefix(String),
    /// Nobody can be meant.
    #[error("the group {0:?} is empty, over {NAME_BYTES_MAX} bytes or holds control characters")]
    BadGroup(String),
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Person<'a> {
    /// Who: what grants to one person name.
    pub subject: &'a str,
    /// A verified e-mail; empty where there is none.
    pub email: &'a str,
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

impl Identity {
    /// Whether what was begun as `before` may go on: as the same user, with no less a right.
    #[must_use]
    pub fn covers(&self, before: &Self) -> bool {
        match (self, before) {
            (
                Self::Impersonated {
                    user,
                    tier: Some(tier),
                    ..
                },
                Self::Impersonated {
                    user: of,
                    tier: Some(held),
                    ..
                },
            ) => user == of && tier >= held,
            _ => self == before,
        }
    }
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
    /// A list that is cut would be another identity.
    #[error("more than {SENT_GROUPS_MAX} groups would be sent")]
    TooManyGroups,
}

impl From<&Access> for Policy {
    fn from(access: &Access) -> Self {
        let mut grants: BTreeMap<String, Vec<Grant>> = BTreeMap::new();
        for grant in &access.grants {
            let held = grants.entry(grant.group.to_string()).or_default();
            held.push(Grant {
                tier: grant.tier,
                not_after_unix_ms: grant.not_after_unix_ms,
            });
        }
        let allowed = access.allowed_groups.iter();
        Self {
            mode: access.mode,
            grants,
            prefix: access.prefix.as_deref().map(str::to_owned),
            allowed_groups: allowed.map(ToString::to_string).collect(),
            read_only: access.read_only,
            user_claim: access.user_claim,
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
            Some(prefix) if name(prefix).is_err() || prefix.contains(',') => {
                Err(PolicyError::BadPrefix(prefix.clone()))
            }
            _ => {
                let mut groups = self.grants.keys().chain(&self.allowed_groups);
                let bad = groups.find(|group| {
                    let found = name(group.strip_prefix(USER_GRANT).unwrap_or(group));
                    matches!(found, Err(Denied::Empty | Denied::Unprintable))
                });
                match bad.cloned() {
                    Some(group) => Err(PolicyError::BadGroup(group)),
                    None => Ok(self),
                }
            }
        }
    }

    /// The highest tier of a person now.
    #[must_use]
    pub fn tier(&self, person: Person<'_>, now_unix_ms: u64) -> Option<Tier> {
        if self.grants.is_empty() {
            return None;
        }
        let own = format!("{USER_GRANT}{}", person.subject);
        let groups = person.counted().map(String::as_str).chain([own.as_str()]);
        let grants = groups.filter_map(|group| self.grants.get(group)).flatten();
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
        let user = name(match self.user_claim {
            UserClaim::Subject => person.subject,
            UserClaim::Email => person.email,
        })?;
        match self.mode {
            Mode::Shared => {
                let own = format!("{USER_GRANT}{}", person.subject);
                let mut groups = person.counted().chain([&own]);
                let is_allowed = groups.any(|group| self.allowed_groups.contains(group));
                is_allowed
                    .then_some(Identity::Agent)
                    .ok_or(Denied::NotAllowed)
            }
            Mode::Tier => {
                let tier = self.tier(person, now_unix_ms).ok_or(Denied::NoTier)?;
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

    /// When the next of a person's grants ends, after `now_unix_ms`; nothing where none does.
    #[must_use]
    pub fn next_end(&self, person: Person<'_>, now_unix_ms: u64) -> Option<u64> {
        let own = format!("{USER_GRANT}{}", person.subject);
        let groups = person.counted().map(String::as_str).chain([own.as_str()]);
        let grants = groups.filter_map(|group| self.grants.get(group)).flatten();
        let ends = grants.filter_map(|grant| grant.not_after_unix_ms);
        ends.filter(|end| now_unix_ms < *end).min()
    }

    /// Whether any grant ends by itself.
    #[must_use]
    pub fn has_ends(&self) -> bool {
        let mut grants = self.grants.values().flatten();
        grants.any(|grant| grant.not_after_unix_ms.is_some())
    }

    /// Whether whoever acts so may only read here.
    #[must_use]
    pub fn only_reads(&self, identity: &Identity) -> bool {
        let is_reader = |tier: &Option<Tier>| *tier == Some(Tier::Read);
        self.read_only || matches!(identity, Identity::Impersonated { tier, .. } if is_reader(tier))
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
        if groups.len() > SENT_GROUPS_MAX {
            return Err(Denied::TooManyGroups);
        }
        Ok(Identity::Impersonated {
            user: user.to_owned(),
            groups,
            tier: None,
        })
    }
}

impl Person<'_> {
    /// The groups that grants are looked up for.
    fn counted(&self) -> impl Iterator<Item = &String> {
        let groups = self.groups.iter().take(GROUPS_MAX);
        groups.filter(|group| !group.starts_with(USER_GRANT))
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
        let person = Person {
            subject: user,
            email: "",
            groups: &groups,
        };
        policy.decide(person, now)
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
    fn what_runs_goes_on_while_the_right_is_no_less() {
        let policy = policy();
        let person = |groups| Person {
            subject: "ana",
            email: "",
            groups,
        };
        let (ops, dev) = (["ops".to_owned()], ["dev".to_owned()]);
        assert!(policy.has_ends());
        assert_eq!(policy.next_end(person(&ops), NOW), Some(NOW + 1_000));
        assert_eq!(policy.next_end(person(&ops), NOW + 1_000), None);
        assert_eq!(policy.next_end(person(&dev), NOW), None);
        let admin = policy.decide(person(&ops), NOW).unwrap();
        let triage = policy.decide(person(&ops), NOW + 1_000).unwrap();
        assert!(admin.covers(&triage) && admin.covers(&admin));
        assert!(!triage.covers(&admin), "the higher grant is over");
        let raw = Policy {
            mode: Mode::Raw,
            ..Policy::default()
        };
        let raw = raw.decide(person(&ops), NOW).unwrap();
        assert!(raw.covers(&raw) && !raw.covers(&triage) && !admin.covers(&raw));
        assert!(!Identity::Agent.covers(&raw) && Identity::Agent.covers(&Identity::Agent));
        let other = decide(&policy, "ben", &["ops"], NOW).unwrap();
        assert!(!other.covers(&triage), "somebody else");
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
            ("a,b", Err(PolicyError::BadPrefix("a,b".to_owned()))),
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
    fn one_person_is_granted_by_name_and_no_group_passes_for_one() {
        let grant = |group: &str| culvert_proto::update::Grant {
            group: group.into(),
            tier: Tier::Write,
            not_after_unix_ms: None,
        };
        let access = Access {
            grants: vec![grant("user:ana")],
            allowed_groups: vec!["user:ana".into()],
            ..Access::default()
        };
        let tier = Policy::from(&access).checked().unwrap();
        let write = as_tier("ana", Tier::Write, "culvert-tier:write");
        assert_eq!(decide(&tier, "ana", &[], NOW), write);
        assert_eq!(
            decide(&tier, "ben", &["user:ana"], NOW),
            Err(Denied::NoTier)
        );
        let shared = Policy {
            mode: Mode::Shared,
            ..tier
        };
        assert_eq!(decide(&shared, "ana", &[], NOW), Ok(Identity::Agent));
        let refused = decide(&shared, "ben", &["user:ana"], NOW);
        assert_eq!(refused, Err(Denied::NotAllowed));
        for group in ["", "user:", " ", "a\nb"] {
            let access = Access {
                grants: vec![grant(group)],
                ..Access::default()
            };
            let refused = Policy::from(&access).checked();
            assert_eq!(refused, Err(PolicyError::BadGroup(group.to_owned())));
        }
    }

    #[test]
    fn readers_read_and_an_unverified_mail_is_nobody() {
        let reads = |policy: &Policy, groups: &[&str]| {
            policy.only_reads(&decide(policy, "ana", groups, NOW).unwrap())
        };
        let tier = policy();
        assert!(reads(&tier, &["dev"]) && !reads(&tier, &["ops"]));
        let raw = Policy {
            mode: Mode::Raw,
            ..policy()
        };
        assert!(!reads(&raw, &["dev"]));
        let raw = Policy {
            read_only: true,
            ..raw
        };
        assert!(reads(&raw, &["dev"]));
        let by_mail = Policy {
            user_claim: UserClaim::Email,
            ..policy()
        };
        assert_eq!(decide(&by_mail, "ana", &["ops"], NOW), Err(Denied::Empty));
        let groups = ["dev".to_owned()];
        let person = Person {
            subject: "ana",
            email: "ana@example.test",
            groups: &groups,
        };
        let seen = by_mail.decide(person, NOW);
        let wanted = as_tier("ana@example.test", Tier::Read, "culvert-tier:read");
        assert_eq!(seen, wanted);
    }

    #[test]
    fn more_groups_than_may_be_sent_are_refused_and_not_cut() {
        let raw = Policy {
            mode: Mode::Raw,
            ..Policy::default()
        };
        let groups: Vec<String> = (0..=SENT_GROUPS_MAX).map(|n| format!("g{n}")).collect();
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        assert!(decide(&raw, "ana", &groups[1..], NOW).is_ok());
        assert_eq!(
            decide(&raw, "ana", &groups, NOW),
            Err(Denied::TooManyGroups)
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
            let person = Person { subject: &user, email: "", groups: &groups };
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
