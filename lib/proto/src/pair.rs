//! Two sides that only dial out meet at a relay (P15).
//!
//! The relay speaks first ([`RelayHello`]); a side shows a [`Preface`] whose
//! signature covers the relay's challenge; the relay answers with [`Reply`] until
//! one says [`ReplyCode::Matched`]. After that the bytes are the two sides' own.

mod hello;
mod preface;
mod read;
mod reply;

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use crate::text;

pub use hello::{HELLO_BYTES, RelayHello, RelayHelloError};
pub use preface::{
    LEAF_BYTES_MAX, PREFACE_BYTES_MAX, PREFACE_HEAD_BYTES, Part, Preface, PrefaceError,
    SIGNATURE_BYTES_MAX, X_BYTES_MAX, signed_bytes,
};
pub use read::PrefaceReader;
pub use reply::{REPLY_BYTES, Reply, ReplyCode, ReplyError};

/// Application protocol of the outer leg.
pub const ALPN_RELAY: &[u8] = b"culvert-relay/1";
/// End to end: the mux, the broker being its client.
pub const ALPN_PAIR: &[u8] = b"culvert-pair/1";
/// End to end: one flow and nothing around it.
pub const ALPN_PAIR_RAW: &[u8] = b"culvert-pair-raw/1";
/// End to end: certificates against a pairing code.
pub const ALPN_BOOT: &[u8] = b"culvert-boot/1";

/// The relay's hello has to be there by then, ms.
pub const HELLO_TIMEOUT_MS: u64 = 10_000;
/// A whole preface has to be there by then, ms after the hello.
pub const PREFACE_TIMEOUT_MS: u64 = 10_000;
/// How often a waiter hears [`ReplyCode::Wait`], ms.
pub const WAIT_INTERVAL_MS: u64 = 15_000;
/// A waiter that heard nothing for so long dials again, ms.
pub const SILENCE_MAX_MS: u64 = 45_000;
/// Longest wait at a relay, ms; then [`ReplyCode::WaitedTooLong`].
pub const WAIT_MAX_MS: u64 = 600_000;

/// The only version of all three layouts.
const VERSION: u8 = 1;

/// Which side of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// Has the target.
    Bridge = 1,
    /// Has the listener.
    Broker = 2,
}

/// How a side proves that it may join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ProofKind {
    /// It knows the id, which is public: matched only with its like.
    Open = 0,
    /// It holds the Ed25519 key that hashes to the id.
    Key = 1,
    /// It holds a key that the certificate authority which hashes to the id certified.
    Certificate = 2,
}

/// Where two sides meet: SHA-256 of the authority's certificate (the "info
/// hash") or of a public key. Known to the relay, no secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RendezvousId(pub [u8; 32]);

/// The text is no rendezvous id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{seen:?} is no info hash: it is 64 hexadecimal digits, the SHA-256 of the pair's CA certificate (DER)"
)]
pub struct RendezvousIdError {
    /// Its beginning.
    pub seen: String,
}

// === impl Role, ProofKind ===

impl Role {
    /// Both.
    pub const ALL: [Role; 2] = [Role::Bridge, Role::Broker];

    /// The side it is joined to.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Role::Bridge => Role::Broker,
            Role::Broker => Role::Bridge,
        }
    }

    /// The word in logs and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Bridge => "bridge",
            Role::Broker => "broker",
        }
    }

    /// From its code on the wire.
    #[must_use]
    pub fn from_u8(code: u8) -> Option<Self> {
        Role::ALL.into_iter().find(|role| *role as u8 == code)
    }
}

impl ProofKind {
    /// All three.
    pub const ALL: [ProofKind; 3] = [ProofKind::Open, ProofKind::Key, ProofKind::Certificate];

    /// The word in logs and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ProofKind::Open => "open",
            ProofKind::Key => "key",
            ProofKind::Certificate => "certificate",
        }
    }

    /// From its code on the wire.
    #[must_use]
    pub fn from_u8(code: u8) -> Option<Self> {
        ProofKind::ALL.into_iter().find(|kind| *kind as u8 == code)
    }
}

// === impl RendezvousId ===

impl fmt::Display for RendezvousId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::hex(&self.0))
    }
}

impl fmt::Debug for RendezvousId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RendezvousId {
    type Err = RendezvousIdError;

    /// Digits of either case; it is written in lower case.
    fn from_str(digits: &str) -> Result<Self, RendezvousIdError> {
        let read = text::unhex(digits.as_bytes()).map(RendezvousId);
        read.ok_or_else(|| RendezvousIdError {
            seen: digits.chars().take(80).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString as _;

    #[test]
    fn an_id_is_64_hexadecimal_digits() {
        let id = RendezvousId([0xAB; 32]);
        let digits = id.to_string();
        assert_eq!(digits, "ab".repeat(32));
        assert_eq!(digits.parse(), Ok(id));
        assert_eq!(digits.to_uppercase().parse(), Ok(id));
        for bad in ["", "ab", &digits[1..], &"zz".repeat(32), &"ab".repeat(33)] {
            assert!(bad.parse::<RendezvousId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn roles_have_two_sides() {
        for role in Role::ALL {
            assert_ne!(role.other(), role);
            assert_eq!(role.other().other(), role);
            assert_eq!(Role::from_u8(role as u8), Some(role));
        }
        assert_eq!((Role::from_u8(0), Role::from_u8(3)), (None, None));
        assert_eq!(ProofKind::from_u8(3), None);
    }
}
