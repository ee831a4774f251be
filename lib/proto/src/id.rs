//! Names of things: clusters, agent processes, sessions, requests, generations.

use alloc::string::String;
use alloc::sync::Arc;
use core::borrow::Borrow;
use core::fmt;
use core::str::FromStr;

use crate::text;

/// Longest cluster id, in bytes.
pub const CLUSTER_ID_MAX: usize = 63;

/// The id of a registered private site: `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`, 1 to 63 characters.
/// Cloning shares the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(Arc<str>);

/// One agent process: a UUID, usually version 7.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub [u8; 16]);

/// One request, as a UUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub [u8; 16]);

/// Number of one accepted session; rises with every accept and survives restarts (P9.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// Number of one version of control's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// Names one session; two sessions never share a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey {
    /// The site.
    pub cluster: ClusterId,
    /// The agent process; [`InstanceId::NONE`] on carriers that do not name one.
    pub instance: InstanceId,
    /// Which accept.
    pub epoch: Epoch,
}

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Empty or too long.
    #[error("cluster id of {length} characters; 1 to {CLUSTER_ID_MAX} are allowed")]
    Length {
        /// Bytes seen.
        length: usize,
    },
    /// A character, or a hyphen at an end, that the pattern refuses.
    #[error("cluster id {seen:?}; use lower-case letters, digits and inner hyphens")]
    Pattern {
        /// The text seen.
        seen: String,
    },
    /// Not 8-4-4-4-12 hexadecimal digits.
    #[error("not a UUID of 8-4-4-4-12 hexadecimal digits")]
    Uuid,
}

// === impl ClusterId ===

impl ClusterId {
    /// Checks the pattern and copies the text.
    pub fn new(text: &str) -> Result<Self, IdError> {
        Self::check(text)?;
        Ok(ClusterId(Arc::from(text)))
    }

    /// Checks the pattern only.
    pub fn check(text: &str) -> Result<(), IdError> {
        let length = text.len();
        if length == 0 || length > CLUSTER_ID_MAX {
            return Err(IdError::Length { length });
        }
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let inner = bytes.iter().all(|byte| plain(*byte) || *byte == b'-');
        if inner && plain(bytes[0]) && plain(bytes[length - 1]) {
            Ok(())
        } else {
            Err(IdError::Pattern { seen: text.into() })
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        ClusterId::new(text)
    }
}

impl TryFrom<&str> for ClusterId {
    type Error = IdError;
    fn try_from(text: &str) -> Result<Self, IdError> {
        ClusterId::new(text)
    }
}

impl Borrow<str> for ClusterId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for ClusterId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl InstanceId, RequestId ===

impl InstanceId {
    /// Stands for "the carrier names no instance"; never accepted from the wire.
    pub const NONE: InstanceId = InstanceId([0; 16]);

    /// A version 7 UUID from the wall clock and 10 random bytes.
    pub fn v7(unix_ms: u64, random: [u8; 10]) -> Self {
        InstanceId(uuid_v7(unix_ms, random))
    }

    /// Whether the carrier named no instance.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

impl RequestId {
    /// A version 7 UUID from the wall clock and 10 random bytes.
    pub fn v7(unix_ms: u64, random: [u8; 10]) -> Self {
        RequestId(uuid_v7(unix_ms, random))
    }
}

macro_rules! uuid_text {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_uuid(text).map($name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(&self.0, f)
            }
        }
    };
}

uuid_text!(InstanceId);
uuid_text!(RequestId);

fn uuid_v7(unix_ms: u64, random: [u8; 10]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&unix_ms.to_be_bytes()[2..]);
    bytes[6..].copy_from_slice(&random);
    bytes[6] = (bytes[6] & 0x0f) | 0x70;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    bytes
}

fn parse_uuid(text: &str) -> Result<[u8; 16], IdError> {
    let bytes = text.as_bytes();
    if bytes.len() != 36 || [8, 13, 18, 23].iter().any(|at| bytes[*at] != b'-') {
        return Err(IdError::Uuid);
    }
    let mut digits = [0; 32];
    let mut plain = bytes.iter().filter(|byte| **byte != b'-');
    for digit in &mut digits {
        *digit = *plain.next().ok_or(IdError::Uuid)?;
    }
    text::unhex(&digits).ok_or(IdError::Uuid)
}

fn write_uuid(bytes: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (place, byte) in bytes.iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

// === impl Epoch, Generation, SessionKey ===

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.cluster, self.instance, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    #[test]
    fn cluster_pattern() {
        for good in ["a", "7", "a-b", "a--b", "prod-eu-1", &"x".repeat(63)] {
            assert_eq!(good.parse::<ClusterId>().unwrap().as_str(), good);
        }
        let long = "x".repeat(64);
        for bad in [
            "", "-a", "a-", "A", "a_b", "a.b", "..", "a/b", "ä", "a b", "%61", &long,
        ] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn uuid_text_is_strict() {
        let text = "0190163d-8694-739b-aea5-966c26f8ad91";
        let id: InstanceId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(text.to_uppercase().parse::<InstanceId>().unwrap(), id);
        for bad in [
            "",
            "0190163d8694739baea5966c26f8ad91",
            &text[1..],
            "{0190163d-8694-739b-aea5}",
        ] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
        assert!(
            "0190163d-8694-739b-aea5-966c26f8ad9-"
                .parse::<InstanceId>()
                .is_err()
        );
    }

    #[test]
    fn v7_bits() {
        let id = InstanceId::v7(0x0190_163d_8694, [0xff; 10]);
        assert_eq!(id.to_string(), "0190163d-8694-7fff-bfff-ffffffffffff");
    }

    proptest! {
        #[test]
        fn uuid_round_trip(bytes: [u8; 16]) {
            prop_assert_eq!(RequestId(bytes).to_string().parse(), Ok(RequestId(bytes)));
        }

        #[test]
        fn parsers_never_panic(text: String) {
            let _ = text.parse::<InstanceId>();
            let _ = text.parse::<ClusterId>();
        }
    }
}
