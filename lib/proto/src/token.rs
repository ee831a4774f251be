//! Cluster tokens: minting, checking, the digest that is stored, the index that finds it (P6).

mod index;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::text;

pub use index::{IndexError, TokenEntry, TokenIndex, TokenRefusal};

/// Prefix of cluster tokens.
pub const TOKEN_PREFIX: &str = "rhc_";
/// Prefix of personal tokens.
pub const PERSONAL_TOKEN_PREFIX: &str = "cvp_";
/// Shortest token, in bytes.
pub const TOKEN_BYTES_MIN: usize = 16;
/// Shortest token of a hub without TLS, in bytes: the example for one machine has nine (A-68,
/// decision 9).
pub const TOKEN_BYTES_DEVELOPMENT_MIN: usize = 8;
/// Longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 512;

const ID_DIGITS: usize = 11;
const SECRET_DIGITS: usize = 43;
const CRC_DIGITS: usize = 6;
const _: () = assert!(TOKEN_PREFIX.len() == PERSONAL_TOKEN_PREFIX.len());
const MINTED_BYTES: usize = TOKEN_PREFIX.len() + ID_DIGITS + 1 + SECRET_DIGITS + CRC_DIGITS;

/// A token in clear. It has no `Debug`, no `Display`, no comparison, and is wiped when dropped.
pub struct TokenText(Box<str>);

/// What a token's text looks like. Says nothing about whether it is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape<'a> {
    /// `rhc_<id>_<secret><crc>`, or `cvp_` of a person, with a fitting checksum.
    Minted {
        /// The public id, safe to log.
        id: &'a str,
    },
    /// The minted form with a checksum that does not fit: mistyped or cut.
    Damaged,
    /// Another string with such a prefix, of an older hub.
    Opaque,
    /// Any other text, from a clusters file.
    PreShared,
}

/// Why a text can be no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Too short or too long.
    #[error("token of {length} bytes; {min} to {TOKEN_BYTES_MAX} are allowed")]
    Length {
        /// Bytes seen.
        length: usize,
        /// Fewest bytes allowed here.
        min: usize,
    },
    /// A space, a control character or a byte outside ASCII.
    #[error("the token holds a space, a control character or a byte outside ASCII")]
    Characters,
}

/// SHA-256 of a token, the only form that is stored. Computed outside this crate; compared here in
/// constant time.
#[derive(Clone, Copy)]
pub struct Digest(pub [u8; 32]);

/// Makes a token from random bytes: `rhc_<id>_<secret><crc>`, 65 characters.
pub fn mint(id_random: [u8; 8], secret_random: [u8; 32]) -> TokenText {
    mint_as(TOKEN_PREFIX, id_random, secret_random)
}

/// Makes a person's token: `cvp_<id>_<secret><crc>`, 65 characters.
pub fn mint_personal(id_random: [u8; 8], secret_random: [u8; 32]) -> TokenText {
    mint_as(PERSONAL_TOKEN_PREFIX, id_random, secret_random)
}

fn mint_as(prefix: &str, id_random: [u8; 8], secret_random: [u8; 32]) -> TokenText {
    let secret_random = Zeroizing::new(secret_random);
    let secret = Zeroizing::new(text::base62(secret_random.as_slice(), SECRET_DIGITS));
    let id = text::base62(&id_random, ID_DIGITS);
    let mut token = String::with_capacity(MINTED_BYTES);
    for part in [prefix, &id, "_", &secret] {
        token.push_str(part);
    }
    let crc = checksum(&token);
    token.push_str(&crc);
    debug_assert_eq!(token.len(), MINTED_BYTES);
    TokenText(token.into_boxed_str())
}

fn checksum(body: &str) -> String {
    text::base62(&text::crc32(body.as_bytes()).to_be_bytes(), CRC_DIGITS)
}

// === impl TokenText ===

impl TokenText {
    /// Accepts any 16 to 512 printable ASCII characters without spaces.
    pub fn new(token: &str) -> Result<Self, TokenError> {
        TokenText::at_least(TOKEN_BYTES_MIN, token)
    }

    /// As [`TokenText::new`], from 8 characters on: for the two ends of a connection without TLS,
    /// which is for development.
    pub fn for_development(token: &str) -> Result<Self, TokenError> {
        TokenText::at_least(TOKEN_BYTES_DEVELOPMENT_MIN, token)
    }

    fn at_least(min: usize, token: &str) -> Result<Self, TokenError> {
        let length = token.len();
        if !(min..=TOKEN_BYTES_MAX).contains(&length) {
            return Err(TokenError::Length { length, min });
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Characters);
        }
        Ok(TokenText(Box::from(token)))
    }

    /// The text itself, for hashing, sending and storing at its owner. Never for logs.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What the text looks like.
    pub fn shape(&self) -> Shape<'_> {
        let prefixes = [TOKEN_PREFIX, PERSONAL_TOKEN_PREFIX];
        let Some(rest) = prefixes.iter().find_map(|it| self.0.strip_prefix(it)) else {
            return Shape::PreShared;
        };
        match rest.split_once('_') {
            Some((id, tail))
                if self.0.len() == MINTED_BYTES
                    && id.len() == ID_DIGITS
                    && text::is_base62(id)
                    && text::is_base62(tail) =>
            {
                let (body, crc) = self.0.split_at(MINTED_BYTES - CRC_DIGITS);
                if checksum(body) == crc {
                    Shape::Minted { id }
                } else {
                    Shape::Damaged
                }
            }
            _ => Shape::Opaque,
        }
    }

    /// The public id of a minted token.
    pub fn id(&self) -> Option<&str> {
        match self.shape() {
            Shape::Minted { id } => Some(id),
            _ => None,
        }
    }

    /// A second copy, where one is really needed.
    pub fn duplicate(&self) -> TokenText {
        TokenText(self.0.clone())
    }
}

impl Drop for TokenText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

// === impl Digest ===

impl Digest {
    /// 64 lower-case hexadecimal digits, for the store.
    pub fn to_hex(&self) -> String {
        text::hex(&self.0)
    }

    /// From 64 hexadecimal digits.
    pub fn from_hex(hex: &str) -> Option<Digest> {
        text::unhex(hex.as_bytes()).map(Digest)
    }
}

impl ConstantTimeEq for Digest {
    fn ct_eq(&self, other: &Self) -> subtle::Choice {
        self.0.ct_eq(&other.0)
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for Digest {}

/// The first bytes only: enough to tell two apart, not enough to search for a weak token.
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("sha256:{}..", text::hex(&self.0[..4])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_token() {
        let token = mint([1; 8], [2; 32]);
        assert_eq!(
            token.expose(),
            include_str!("../tests/golden/token.txt").trim_end()
        );
        assert_eq!(
            token.shape(),
            Shape::Minted {
                id: token.id().unwrap()
            }
        );
    }

    #[test]
    fn shapes() {
        let length = |length, min| TokenError::Length { length, min };
        let shape = |text: &str| TokenText::new(text).map(|t| alloc::format!("{:?}", t.shape()));
        assert_eq!(shape("rhc_0123456789abcdef").unwrap(), "Opaque");
        assert_eq!(shape("a-shared-secret-of-a-file").unwrap(), "PreShared");
        assert_eq!(
            shape("fifteen-letters").unwrap_err(),
            length(15, TOKEN_BYTES_MIN)
        );
        assert_eq!(
            shape("with space in the middle").unwrap_err(),
            TokenError::Characters
        );
        assert_eq!(
            shape(&"x".repeat(513)).unwrap_err(),
            length(513, TOKEN_BYTES_MIN)
        );
        assert!(shape(&"x".repeat(512)).is_ok() && shape(&"x".repeat(16)).is_ok());
    }

    #[test]
    fn development_takes_shorter_ones() {
        let short = |text: &str| TokenText::for_development(text).err();
        assert_eq!(short("dev-token"), None, "the example of A-68");
        assert_eq!(short("12345678"), None);
        let length = |length| TokenError::Length {
            length,
            min: TOKEN_BYTES_DEVELOPMENT_MIN,
        };
        assert_eq!(short("1234567"), Some(length(7)));
        assert_eq!(short(&"x".repeat(513)), Some(length(513)));
        assert_eq!(short("with space"), Some(TokenError::Characters));
    }

    #[test]
    fn digest_debug_is_short() {
        assert_eq!(
            alloc::format!("{:?}", Digest([0xab; 32])),
            "sha256:abababab.."
        );
        let digest = Digest([7; 32]);
        assert_eq!(Digest::from_hex(&digest.to_hex()), Some(digest));
        assert_eq!(Digest::from_hex("00"), None);
    }

    proptest! {
        #[test]
        fn minted_tokens_check_and_one_wrong_character_is_seen(
            id: [u8; 8], secret: [u8; 32], place in 0usize..60, replacement in "[0-9A-Za-z]",
        ) {
            let token = mint(id, secret);
            prop_assert_eq!(token.expose().len(), MINTED_BYTES);
            let minted = matches!(token.shape(), Shape::Minted { .. });
            prop_assert!(minted);
            let mut wrong = String::from(token.expose());
            let place = TOKEN_PREFIX.len() + place % (MINTED_BYTES - TOKEN_PREFIX.len());
            if wrong.as_bytes()[place] != b'_' && wrong[place..=place] != replacement {
                wrong.replace_range(place..=place, &replacement);
                let wrong = TokenText::new(&wrong).unwrap();
                prop_assert_eq!(wrong.shape(), Shape::Damaged);
            }
        }

        #[test]
        fn any_text_is_safe(text: String) {
            if let Ok(token) = TokenText::new(&text) {
                let _ = token.shape();
            }
        }
    }
}
