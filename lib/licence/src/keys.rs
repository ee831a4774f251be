//! The vendor's public keys: a list that only grows.

use crate::vendor;

/// Keys of this build: `CULVERT_LICENSE_PUBLIC_KEYS` when it was built, `KID=HEX` or `HEX`,
/// separated by commas. A new key is appended; old ones stay, so that licences
/// signed with them stay good (L-32).
const EMBEDDED: &str = match option_env!("CULVERT_LICENSE_PUBLIC_KEYS") {
    Some(keys) => keys,
    None => PLACEHOLDER,
};
const PLACEHOLDER: &str = "0000000000000000000000000000000000000000000000000000000000000000";

// A release names its keys; a build that does not is for trying out (L-36).
const _: () = assert!(
    option_env!("CULVERT_RELEASE").is_none() || !has_placeholder(EMBEDDED),
    "a release wants CULVERT_LICENSE_PUBLIC_KEYS without the all-zero placeholder"
);
const _: () = assert!(
    is_well_formed(EMBEDDED),
    "CULVERT_LICENSE_PUBLIC_KEYS wants KID=64 hex digits or 64 hex digits, separated by commas"
);

/// Keys at most.
const KEYS_MAX: usize = 64;
const KEY_BYTES: usize = 32;

/// One of the vendor's public keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its id; empty = it has none.
    pub kid: String,
    /// Ed25519.
    pub public: [u8; KEY_BYTES],
}

/// The keys that a licence may be signed with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet(Vec<Key>);

/// A text is no list of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no key: wanted KID=64 hex digits, or 64 hex digits")]
pub struct KeySetError(String);

impl KeySet {
    /// The keys of this build.
    #[must_use]
    pub fn embedded() -> Self {
        Self::parse(EMBEDDED).expect("checked when it was built")
    }

    /// Reads `KID=HEX` or `HEX`, separated by commas.
    ///
    /// # Errors
    /// [`KeySetError`], naming the entry.
    pub fn parse(text: &str) -> Result<Self, KeySetError> {
        let mut keys = Vec::new();
        for entry in text.split(',').map(str::trim) {
            let wrong = || KeySetError(entry.chars().take(80).collect());
            let (kid, hex) = entry.split_once('=').unwrap_or(("", entry));
            let public = unhex(hex).ok_or_else(wrong)?;
            if keys.len() == KEYS_MAX {
                return Err(wrong());
            }
            keys.push(Key {
                kid: kid.to_owned(),
                public,
            });
        }
        Ok(Self(keys))
    }

    /// Whether the all-zero placeholder is among them. It verifies nothing.
    #[must_use]
    pub fn has_placeholder(&self) -> bool {
        self.0.iter().any(|key| key.public == [0; KEY_BYTES])
    }

    /// Whether one of them is `public`.
    #[must_use]
    pub fn contains(&self, public: &[u8; KEY_BYTES]) -> bool {
        self.0.iter().any(|key| key.public == *public)
    }

    /// The keys that `kid` selects; all of them where a licence names none.
    pub(crate) fn selected<'a>(&'a self, kid: Option<&'a str>) -> impl Iterator<Item = &'a Key> {
        self.0
            .iter()
            .filter(|key| key.public != [0; KEY_BYTES])
            .filter(move |key| kid.is_none_or(|kid| key.kid == kid))
    }
}

/// What was given where the embedded keys would be used, for people.
#[must_use]
pub(crate) fn placeholder_line(keys: &KeySet) -> Option<&'static str> {
    keys.has_placeholder().then_some(vendor::LINE_PLACEHOLDER)
}

fn unhex(text: &str) -> Option<[u8; KEY_BYTES]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * KEY_BYTES {
        return None;
    }
    let digit = |at: usize| char::from(digits[at]).to_digit(16);
    let mut key = [0; KEY_BYTES];
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::try_from(digit(2 * at)? * 16 + digit(2 * at + 1)?).ok()?;
    }
    Some(key)
}

/// Every entry ends in 64 hex digits, the whole of it or behind a `=`.
const fn is_well_formed(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (mut at, mut digits) = (0, 0);
    let mut is_hex = true;
    while at <= bytes.len() {
        if at == bytes.len() || bytes[at] == b',' {
            if !is_hex || digits != 2 * KEY_BYTES {
                return false;
            }
            (digits, is_hex) = (0, true);
        } else if bytes[at] == b'=' {
            (digits, is_hex) = (0, true);
        } else {
            is_hex = is_hex && bytes[at].is_ascii_hexdigit();
            digits += 1;
        }
        at += 1;
    }
    true
}

/// Some entry is all zeros.
const fn has_placeholder(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (mut at, mut zeros, mut others) = (0, 0, false);
    while at <= bytes.len() {
        if at == bytes.len() || bytes[at] == b',' {
            if zeros == 2 * KEY_BYTES && !others {
                return true;
            }
            (zeros, others) = (0, false);
        } else if bytes[at] == b'=' {
            (zeros, others) = (0, false);
        } else if bytes[at] == b'0' {
            zeros += 1;
        } else {
            others = true;
        }
        at += 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_as_it_is_checked_when_built() {
        let a = "0f".repeat(32);
        let b = "A1".repeat(32);
        for (text, keys) in [
            (a.clone(), Some(1)),
            (format!("2026={a}"), Some(1)),
            (format!("old={a},new={b}"), Some(2)),
            (format!("{a},"), None),
            (String::new(), None),
            ("0f".repeat(31), None),
            (format!("kid={}", "zz".repeat(32)), None),
        ] {
            let read = KeySet::parse(&text);
            assert_eq!(read.ok().map(|set| set.0.len()), keys, "{text}");
            assert_eq!(is_well_formed(&text), keys.is_some(), "{text}");
        }
        let set = KeySet::parse(&format!("old={a},new={b}")).unwrap();
        assert_eq!(set.selected(Some("new")).count(), 1);
        assert_eq!(set.selected(None).count(), 2);
        assert_eq!(set.selected(Some("other")).count(), 0);
    }

    #[test]
    fn the_placeholder_is_noticed_and_selects_nothing() {
        for text in [PLACEHOLDER.to_owned(), format!("k={PLACEHOLDER}")] {
            assert!(has_placeholder(&text));
            let set = KeySet::parse(&text).unwrap();
            assert!(set.has_placeholder());
            assert_eq!(set.selected(None).count(), 0);
        }
        let real = format!("{}1", "0".repeat(63));
        assert!(!has_placeholder(&real));
        assert!(has_placeholder(&format!("a={real},b={PLACEHOLDER}")));
    }
}
