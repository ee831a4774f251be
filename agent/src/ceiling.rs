//! Which identities this agent impersonates at most, whatever its hub asks for (T4): a stolen
//! hub gets no further.

use http::HeaderMap;

/// Patterns of one list.
pub const PATTERNS_MAX: usize = 64;
/// Names that a cluster keeps for itself.
const RESERVED: &str = "system:";
/// Those of them that a pattern may name: what ArgoCD's sync impersonation sends.
const ACCOUNTS: &str = "system:serviceaccount:";

/// Names, with `*` for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patterns(Vec<String>);

/// The most that is impersonated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ceiling {
    /// Users.
    pub users: Patterns,
    /// Groups.
    pub groups: Patterns,
    /// Requests that act as nobody are refused too.
    pub wants_identity: bool,
}

/// Why a request stays outside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Above {
    /// The name is not in the list.
    #[error("{what} {name:?} is not among {setting} of this agent")]
    NotListed {
        /// user or group.
        what: &'static str,
        /// The name.
        name: String,
        /// Where it would stand.
        setting: &'static str,
    },
    /// A name that only the cluster itself may carry.
    #[error("{0:?} belongs to the cluster itself and is never impersonated")]
    Reserved(String),
    /// No identity, where one is wanted.
    #[error("the request acts as nobody, and this agent wants an identity (--require-identity)")]
    Nobody,
}

impl Default for Patterns {
    /// Everybody but the cluster's own.
    fn default() -> Self {
        Self(vec!["*".to_owned()])
    }
}

impl Patterns {
    /// Reads patterns with commas.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let all: Vec<String> = text.split(',').map(|one| one.trim().to_owned()).collect();
        if all.len() > PATTERNS_MAX {
            return Err(format!(
                "holds {} patterns; at most {PATTERNS_MAX}",
                all.len()
            ));
        }
        for one in &all {
            if one.is_empty() {
                return Err("holds an empty pattern; * is everybody".to_owned());
            }
            if is_reserved(one) && !one.starts_with(ACCOUNTS) {
                return Err(format!(
                    "holds {one:?}; of system: only {ACCOUNTS}NAMESPACE:NAME may be named"
                ));
            }
        }
        Ok(Self(all))
    }

    fn hold(&self, name: &str) -> bool {
        let mut patterns = self.0.iter();
        // A star alone never means the cluster's own.
        patterns.any(|it| is_reserved(it) == is_reserved(name) && matches(it, name))
    }
}

impl Ceiling {
    /// Whether the identity in a head stays below.
    ///
    /// # Errors
    /// [`Above`].
    pub fn judge(&self, headers: &HeaderMap, is_kube: bool) -> Result<(), Above> {
        let mut is_somebody = false;
        for (field, what, patterns, setting) in [
            (
                "impersonate-user",
                "user",
                &self.users,
                "--impersonate-users",
            ),
            (
                "impersonate-group",
                "group",
                &self.groups,
                "--impersonate-groups",
            ),
        ] {
            for value in headers.get_all(field) {
                is_somebody |= what == "user";
                let name = String::from_utf8_lossy(value.as_bytes());
                let name = name.trim();
                if patterns.hold(name) {
                    continue;
                }
                let name = name.to_owned();
                return Err(match is_reserved(&name) {
                    true => Above::Reserved(name),
                    false => Above::NotListed {
                        what,
                        name,
                        setting,
                    },
                });
            }
        }
        match is_kube && self.wants_identity && !is_somebody {
            true => Err(Above::Nobody),
            false => Ok(()),
        }
    }
}

fn is_reserved(name: &str) -> bool {
    let start = name.get(..RESERVED.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(RESERVED))
}

/// Each star is any number of characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, inner)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in inner {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn head(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(HeaderName::from_static(name), value);
        }
        headers
    }

    #[test]
    fn everybody_but_the_clusters_own_unless_somebody_is_named() {
        let judge = |ceiling: &Ceiling, user: &str, group: &str| {
            let head = head(&[("impersonate-user", user), ("impersonate-group", group)]);
            ceiling.judge(&head, true).is_ok()
        };
        let open = Ceiling::default();
        assert!(judge(&open, "ana", "culvert-tier:read") && judge(&open, "ána", "g"));
        for (user, group) in [
            ("system:admin", "g"),
            ("System:admin", "g"),
            ("ana", "system:masters"),
            ("ana", " system:masters"),
            ("system:serviceaccount:kube-system:x", "g"),
        ] {
            assert!(!judge(&open, user, group), "{user} {group}");
        }
        let some = Ceiling {
            users: Patterns::parse("*@corp.test, ci-*, system:serviceaccount:argocd:*").unwrap(),
            groups: Patterns::parse("culvert-tier:*").unwrap(),
            ..Ceiling::default()
        };
        for (user, group, passes) in [
            ("ana@corp.test", "culvert-tier:read", true),
            ("ci-7", "culvert-tier:admin", true),
            (
                "system:serviceaccount:argocd:sync",
                "culvert-tier:read",
                true,
            ),
            (
                "system:serviceaccount:kube-system:sync",
                "culvert-tier:read",
                false,
            ),
            ("ana@corp.test.evil", "culvert-tier:read", false),
            ("ana@corp.test", "admins", false),
            ("ana@corp.test", "system:masters", false),
        ] {
            assert_eq!(judge(&some, user, group), passes, "{user} {group}");
        }
    }

    #[test]
    fn who_acts_as_nobody_is_refused_where_an_identity_is_wanted() {
        let strict = Ceiling {
            wants_identity: true,
            ..Ceiling::default()
        };
        assert_eq!(strict.judge(&head(&[]), true), Err(Above::Nobody));
        assert_eq!(strict.judge(&head(&[]), false), Ok(()), "no Kubernetes");
        assert_eq!(Ceiling::default().judge(&head(&[]), true), Ok(()));
    }

    #[test]
    fn patterns_that_cannot_be_meant_are_refused() {
        for bad in ["", "a,,b", "system:*", "SYSTEM:masters", "a,system:masters"] {
            assert!(Patterns::parse(bad).is_err(), "{bad:?}");
        }
        let many = vec!["a"; PATTERNS_MAX + 1].join(",");
        assert!(Patterns::parse(&many).is_err());
    }

    proptest! {
        #[test]
        fn a_star_alone_holds_every_name_but_the_reserved(name in "\\PC{0,20}") {
            prop_assert_eq!(Patterns::default().hold(&name), !is_reserved(&name));
        }

        #[test]
        fn a_name_is_held_by_itself_and_with_stars(a in "[a-z:]{0,5}", b in "[a-z:]{0,5}", c in "[a-z:]{0,5}") {
            let name = format!("{a}{b}{c}");
            for pattern in [name.clone(), format!("{a}*{c}"), format!("*{b}*"), format!("{a}{b}*")] {
                prop_assert!(matches(&pattern, &name), "{pattern} {name}");
            }
            let longer = format!("{name}x");
            prop_assert!(!matches(&longer, &name));
        }
    }
}
