//! From the claims of a provider to a person: subject, e-mail, groups (D-25). Pure.

use std::fmt;

use culvert_identity::GROUPS_MAX;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::quoted;

/// Longest subject, e-mail or group, in bytes: what is sent upstream has the same bound.
const NAME_BYTES_MAX: usize = 256;
/// Claims of e-mail addresses, which are believed when they are verified.
const EMAIL: &str = "email";
/// Subjects that the API and the audit log know as somebody else, and Kubernetes' own.
const RESERVED: [&str; 9] = [
    "admin-token",
    "api-token:",
    "break-glass:",
    "connect-request:",
    "license-server",
    "registry-file",
    "system:",
    "uid:",
    "unknown",
];

/// What the claims of a provider mean here.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Where groups are: the name of a claim, or names with dots into nested objects.
    pub groups_claim: String,
    /// Groups that begin with one of these are kept; empty = all.
    pub groups_filter: Vec<String>,
    /// Who somebody is: `sub`, or another claim.
    pub username_claim: String,
    /// In front of subject and groups, so that providers cannot speak for each other.
    pub prefix: String,
}

/// Somebody for whom a provider vouches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Who: sent upstream.
    pub subject: String,
    /// Verified, or empty.
    pub email: String,
    /// Sorted, each once.
    pub groups: Vec<String>,
}

/// Why claims make nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// The claim that says who it is is missing or no text.
    #[error("the claim {0:?}, which says who it is, is missing or no text")]
    NoName(String),
    /// It is an e-mail address that anybody may have written.
    #[error("the e-mail address is not verified (email_verified is not true)")]
    Unverified,
    /// It is empty, too long, not printable, or somebody else's.
    #[error(
        "{0:?} is no name that is passed on: empty, longer than {NAME_BYTES_MAX} bytes, with control characters or outer spaces, or reserved"
    )]
    BadName(String),
    /// Groups are neither a text nor a list of texts.
    #[error("the claim {0:?} is neither a text nor a list of texts")]
    BadGroups(String),
    /// The provider left them out.
    #[error("the provider left the groups out of the token, as they are too many")]
    Elsewhere,
    /// More than are looked at.
    #[error("{0} groups, more than {GROUPS_MAX}")]
    TooMany(usize),
}

impl Mapping {
    /// The person of these claims.
    ///
    /// # Errors
    /// [`ClaimsError`].
    pub fn person(&self, claims: &Map<String, Value>) -> Result<Person, ClaimsError> {
        let is_verified = claims.get("email_verified") == Some(&Value::Bool(true));
        let named = claims.get(&self.username_claim).and_then(Value::as_str);
        let named = named.ok_or_else(|| ClaimsError::NoName(self.username_claim.clone()))?;
        if self.username_claim == EMAIL && !is_verified {
            return Err(ClaimsError::Unverified);
        }
        let subject = self.name(named)?;
        // Behind a prefix it is nobody else's.
        if is_reserved(&subject) {
            return Err(ClaimsError::BadName(quoted(&subject)));
        }
        let email = claims.get(EMAIL).and_then(Value::as_str);
        let email = email.filter(|email| is_verified && is_sound(email));
        Ok(Person {
            subject,
            email: email.unwrap_or_default().to_owned(),
            groups: self.groups(claims)?,
        })
    }

    /// Whether a claim that this mapping needs is missing: the provider may keep it elsewhere. An
    /// address alone is not worth a request, nor a sign-in that fails with it.
    #[must_use]
    pub fn wants_more(&self, claims: &Map<String, Value>) -> bool {
        !claims.contains_key(&self.username_claim) || self.found(claims).is_none()
    }

    fn groups(&self, claims: &Map<String, Value>) -> Result<Vec<String>, ClaimsError> {
        let bad = || ClaimsError::BadGroups(self.groups_claim.clone());
        let names: Vec<&str> = match self.found(claims) {
            None if self.is_elsewhere(claims) => return Err(ClaimsError::Elsewhere),
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(all)) => {
                let names: Option<Vec<_>> = all.iter().map(Value::as_str).collect();
                names.ok_or_else(bad)?
            }
            Some(_) => return Err(bad()),
        };
        let is_kept = |name: &&str| {
            let mut filter = self.groups_filter.iter();
            self.groups_filter.is_empty() || filter.any(|start| name.starts_with(start.as_str()))
        };
        let kept = names.into_iter().filter(is_kept);
        let mut groups = kept
            .map(|name| self.name(name))
            .collect::<Result<Vec<_>, _>>()?;
        groups.sort_unstable();
        groups.dedup();
        // Never a part of them: what is left out could be what denies.
        match groups.len() {
            count if count > GROUPS_MAX => Err(ClaimsError::TooMany(count)),
            _ => Ok(groups),
        }
    }

    /// Names with dots are claims too, such as `https://example.com/groups`.
    fn found<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let nested = || {
            let mut names = self.groups_claim.split('.');
            let first = claims.get(names.next()?);
            names.fold(first, |value, name| value?.as_object()?.get(name))
        };
        claims.get(&self.groups_claim).or_else(nested)
    }

    /// Whether the provider says that the claim is to be asked for at another place.
    fn is_elsewhere(&self, claims: &Map<String, Value>) -> bool {
        let names = claims.get("_claim_names").and_then(Value::as_object);
        names.is_some_and(|names| names.contains_key(&self.groups_claim))
    }

    fn name(&self, name: &str) -> Result<String, ClaimsError> {
        let whole = format!("{}{name}", self.prefix);
        match is_sound(name) && whole.len() <= NAME_BYTES_MAX {
            true => Ok(whole),
            false => Err(ClaimsError::BadName(quoted(name))),
        }
    }
}

/// Whether the audit log gives this name, or names that begin so, to others than people.
#[must_use]
pub fn is_reserved(subject: &str) -> bool {
    RESERVED.iter().any(|word| match word.ends_with(':') {
        true => subject
            .get(..word.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(word)),
        false => subject.eq_ignore_ascii_case(word),
    })
}

fn is_sound(name: &str) -> bool {
    let is_plain = !name.chars().any(|c| c.is_control() || c == '\u{feff}');
    !name.is_empty() && name.trim() == name && name.len() <= NAME_BYTES_MAX && is_plain
}

/// A JSON object in which, at any depth, no name stands twice: readers that take another one of
/// the two would see other claims.
///
/// # Errors
/// What is wrong with it.
pub fn object(json: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = Once.deserialize(&mut reader)?;
    reader.end()?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(serde_json::Error::custom("no JSON object")),
    }
}

struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = Value;

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(Once)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(name) = pairs.next_key::<String>()? {
            let value = pairs.next_value_seed(Once)?;
            if all.contains_key(&name) {
                let why = format!("{:?} stands twice", quoted(&name));
                return Err(A::Error::custom(why));
            }
            all.insert(name, value);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn mapping() -> Mapping {
        Mapping {
            groups_claim: "groups".to_owned(),
            groups_filter: Vec::new(),
            username_claim: "sub".to_owned(),
            prefix: String::new(),
        }
    }

    fn person(mapping: &Mapping, claims: Value) -> Result<Person, ClaimsError> {
        let Value::Object(claims) = claims else {
            panic!("claims are an object")
        };
        mapping.person(&claims)
    }

    #[expect(clippy::needless_pass_by_value, reason = "made for the call")]
    fn groups(mapping: &Mapping, value: Value) -> Result<Vec<String>, ClaimsError> {
        person(mapping, json!({"sub": "ana", "groups": value})).map(|person| person.groups)
    }

    #[test]
    fn a_person_has_a_subject_a_verified_address_and_groups() {
        let claims = json!({
            "sub": "248289", "email": "ana@example.test", "email_verified": true,
            "groups": ["ops", "dev", "ops"],
        });
        let ana = person(&mapping(), claims.clone()).unwrap();
        assert_eq!(ana.subject, "248289");
        assert_eq!(ana.email, "ana@example.test");
        assert_eq!(ana.groups, ["dev", "ops"]);
        let by_email = Mapping {
            username_claim: "email".to_owned(),
            prefix: "corp:".to_owned(),
            ..mapping()
        };
        let ana = person(&by_email, claims).unwrap();
        assert_eq!(ana.subject, "corp:ana@example.test");
        assert_eq!(ana.groups, ["corp:dev", "corp:ops"]);
        for verified in [json!(false), json!("true"), json!(1), Value::Null] {
            let claims =
                json!({"sub": "1", "email": "ana@example.test", "email_verified": verified});
            let seen = person(&by_email, claims.clone());
            assert_eq!(seen, Err(ClaimsError::Unverified), "{claims}");
            assert_eq!(person(&mapping(), claims).unwrap().email, "");
        }
    }

    #[test]
    fn who_is_nobody_or_somebody_else_is_refused() {
        for name in [json!(null), json!(1), json!(["ana"]), json!({})] {
            let seen = person(&mapping(), json!({"sub": name}));
            assert_eq!(seen, Err(ClaimsError::NoName("sub".to_owned())));
        }
        assert!(person(&mapping(), json!({})).is_err());
        for name in [
            "",
            " ",
            "ana ",
            "ana\r\nX: y",
            "system:admin",
            "System:masters",
            "uid:0",
            "break-glass:root@example.test",
            "admin-token",
            "ADMIN-TOKEN",
            "unknown",
            "api-token:x",
            "connect-request:x",
        ] {
            let seen = person(&mapping(), json!({"sub": name}));
            assert!(
                matches!(seen, Err(ClaimsError::BadName(_))),
                "{name:?}: {seen:?}"
            );
        }
        let behind = Mapping {
            prefix: "corp:".to_owned(),
            ..mapping()
        };
        assert_eq!(
            person(&behind, json!({"sub": "uid:0"})).unwrap().subject,
            "corp:uid:0"
        );
        let long = "a".repeat(NAME_BYTES_MAX - 4);
        assert!(
            person(&behind, json!({"sub": long})).is_err(),
            "with its prefix it is too long"
        );
    }

    #[test]
    fn groups_are_a_text_or_texts_all_or_none() {
        let is = |value| groups(&mapping(), value);
        assert_eq!(is(json!("ops")), Ok(vec!["ops".to_owned()]));
        assert_eq!(is(json!([])), Ok(vec![]));
        assert_eq!(is(Value::Null), Ok(vec![]));
        for bad in [
            json!(1),
            json!({"a": 1}),
            json!([1]),
            json!(["ops", null]),
            json!(true),
        ] {
            assert_eq!(is(bad), Err(ClaimsError::BadGroups("groups".to_owned())));
        }
        assert!(matches!(
            is(json!(["ops", "a\nb"])),
            Err(ClaimsError::BadName(_))
        ));
        let many: Vec<String> = (0..=GROUPS_MAX).map(|n| format!("g{n}")).collect();
        assert_eq!(is(json!(many)), Err(ClaimsError::TooMany(GROUPS_MAX + 1)));
        let some = Mapping {
            groups_filter: vec!["g51".to_owned(), "k8s-".to_owned()],
            ..mapping()
        };
        let kept = groups(&some, json!(many)).unwrap();
        assert_eq!(kept, ["g51", "g510", "g511", "g512"]);
        let claims = json!({"sub": "ana", "_claim_names": {"groups": "src1"}});
        assert_eq!(person(&mapping(), claims), Err(ClaimsError::Elsewhere));
    }

    #[test]
    fn groups_may_be_nested_and_names_may_hold_dots() {
        let claims = json!({
            "sub": "ana", "realm_access": {"roles": ["ops"]},
            "https://example.test/groups": "dev", "a.b": "flat", "a": {"b": "nested"},
        });
        for (name, wanted) in [
            ("realm_access.roles", Some("ops")),
            ("https://example.test/groups", Some("dev")),
            ("a.b", Some("flat")),
            ("realm_access.none", None),
            ("sub.roles", None),
            ("", None),
        ] {
            let mapping = Mapping {
                groups_claim: name.to_owned(),
                ..mapping()
            };
            let seen = person(&mapping, claims.clone()).unwrap().groups;
            assert_eq!(seen.first().map(String::as_str), wanted, "{name}");
        }
    }

    #[test]
    fn a_name_that_stands_twice_is_refused_at_any_depth() {
        assert_eq!(
            object(br#"{"a":{"b":[1,-1,0.5,"x",null,true]}}"#)
                .unwrap()
                .len(),
            1
        );
        for bad in [
            r#"{"aud":"a","aud":"b"}"#,
            r#"{"a":{"b":1,"b":1}}"#,
            r#"{"a":[{"b":1,"\u0062":2}]}"#,
            "[]",
            "{} {}",
            "",
        ] {
            assert!(object(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(object(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn whoever_is_made_is_sound(
            sub in ".{0,20}", groups in prop::collection::vec(".{0,12}", 0..5), prefix in "(corp:)?",
        ) {
            let mapping = Mapping { prefix, ..mapping() };
            if let Ok(person) = person(&mapping, json!({"sub": sub, "groups": groups})) {
                for name in person.groups.iter().chain([&person.subject]) {
                    prop_assert!(!name.trim().is_empty() && !name.chars().any(char::is_control));
                    prop_assert!(name.len() <= NAME_BYTES_MAX);
                }
                prop_assert!(!person.subject.to_ascii_lowercase().starts_with("system:"));
            }
        }
    }
}
