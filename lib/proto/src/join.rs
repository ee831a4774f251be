//! The join string `cvj_...`: everything an agent needs for its first contact, in one word (P6.3).

use alloc::string::String;
use alloc::vec::Vec;

use zeroize::{Zeroize, Zeroizing};

use crate::id::{ClusterId, IdError};
use crate::text;
use crate::token::{TokenError, TokenText};
use crate::wire::{self, Reader};

/// Prefix of join strings.
pub const JOIN_PREFIX: &str = "cvj_";
/// The only format version.
pub const JOIN_VERSION: u8 = 1;
/// Hub addresses in one string.
pub const JOIN_HUBS_MAX: usize = 8;
/// One hub URL, in bytes.
pub const JOIN_HUB_BYTES_MAX: usize = 512;
/// Longest join string, in characters.
pub const JOIN_BYTES_MAX: usize = 8 << 10;

/// A join string's content. It holds a token: no `Debug`.
pub struct JoinString {
    /// Hub URLs, in order of preference; 1 to 8.
    pub hubs: Vec<String>,
    /// The cluster to join as.
    pub cluster: ClusterId,
    /// The credential.
    pub token: TokenText,
    /// SHA-256 of the hub's public key (SPKI), when its certificate is not publicly trusted.
    pub spki_pin: Option<[u8; 32]>,
    /// When the string stops being useful, unix s; 0 = never.
    pub expires_unix_s: u64,
    /// Where the token is changed for a certificate; `None` = at the first hub, where it is needed.
    pub register: Option<String>,
}

/// Why a text is no usable join string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Another kind of string.
    #[error("a join string starts with {JOIN_PREFIX}")]
    Prefix,
    /// Longer than any join string.
    #[error("join string over {JOIN_BYTES_MAX} characters")]
    TooLong,
    /// A character was changed or lost.
    #[error("the join string is damaged; copy it again as a whole")]
    Damaged,
    /// Made by a later version.
    #[error("join string of format {seen}; this version reads format {JOIN_VERSION}: upgrade")]
    Version {
        /// The format seen.
        seen: u8,
    },
    /// A field is missing, repeated or impossible.
    #[error("the join string lacks a usable {0}")]
    Field(&'static str),
    /// Its cluster is no cluster id.
    #[error("join string: {0}")]
    Cluster(#[from] IdError),
    /// Its token is no token.
    #[error("join string: {0}")]
    Token(#[from] TokenError),
}

mod field {
    pub(super) const HUB: u8 = 1;
    pub(super) const CLUSTER: u8 = 2;
    pub(super) const TOKEN: u8 = 3;
    pub(super) const SPKI_PIN: u8 = 4;
    pub(super) const EXPIRES: u8 = 5;
    pub(super) const REGISTER: u8 = 6;
}

impl JoinString {
    /// The word to copy. It is a secret.
    pub fn encode(&self) -> Result<Zeroizing<String>, JoinError> {
        let hubs_fit = (1..=JOIN_HUBS_MAX).contains(&self.hubs.len());
        if !hubs_fit || self.hubs.iter().any(|hub| !hub_is_usable(hub)) {
            return Err(JoinError::Field("hub URL"));
        }
        if self
            .register
            .as_ref()
            .is_some_and(|url| !hub_is_usable(url))
        {
            return Err(JoinError::Field("registration URL"));
        }
        let mut body = Zeroizing::new(Vec::with_capacity(JOIN_BYTES_MAX));
        body.push(JOIN_VERSION);
        self.write_fields(&mut body)
            .map_err(|_| JoinError::TooLong)?;
        let crc = text::crc32(&body);
        body.extend_from_slice(&crc.to_be_bytes());
        let mut encoded = text::base64url(&body);
        let word = Zeroizing::new([JOIN_PREFIX, &encoded].concat());
        encoded.zeroize();
        Ok(word)
    }

    fn write_fields(&self, body: &mut Vec<u8>) -> Result<(), wire::TooLong> {
        for hub in &self.hubs {
            wire::put_tlv(body, field::HUB, hub.as_bytes())?;
        }
        wire::put_tlv(body, field::CLUSTER, self.cluster.as_str().as_bytes())?;
        wire::put_tlv(body, field::TOKEN, self.token.expose().as_bytes())?;
        if let Some(pin) = &self.spki_pin {
            wire::put_tlv(body, field::SPKI_PIN, pin)?;
        }
        if self.expires_unix_s != 0 {
            wire::put_tlv(body, field::EXPIRES, &self.expires_unix_s.to_be_bytes())?;
        }
        if let Some(register) = &self.register {
            wire::put_tlv(body, field::REGISTER, register.as_bytes())?;
        }
        Ok(())
    }

    /// Reads the word; white space around it is ignored.
    pub fn decode(word: &str) -> Result<JoinString, JoinError> {
        let word = word.trim();
        if word.len() > JOIN_BYTES_MAX {
            return Err(JoinError::TooLong);
        }
        let encoded = word.strip_prefix(JOIN_PREFIX).ok_or(JoinError::Prefix)?;
        let bytes = text::unbase64url(encoded.as_bytes()).ok_or(JoinError::Damaged)?;
        let bytes = Zeroizing::new(bytes);
        let (body, crc) = bytes.split_last_chunk().ok_or(JoinError::Damaged)?;
        if text::crc32(body) != u32::from_be_bytes(*crc) {
            return Err(JoinError::Damaged);
        }
        match body.split_first() {
            Some((&JOIN_VERSION, fields)) => Self::read_fields(fields),
            Some((&seen, _)) => Err(JoinError::Version { seen }),
            None => Err(JoinError::Damaged),
        }
    }

    fn read_fields(fields: &[u8]) -> Result<JoinString, JoinError> {
        let mut reader = Reader::new(fields);
        let (mut hubs, mut cluster, mut token) = (Vec::new(), None, None);
        let (mut spki_pin, mut expires, mut register) = (None, None, None);
        while !reader.is_empty() {
            let (kind, mut value) = reader.tlv().map_err(|_| JoinError::Damaged)?;
            let value = value.rest();
            let repeated = match kind {
                field::HUB => {
                    hubs.push(String::from(utf8(value, "hub URL")?));
                    false
                }
                field::CLUSTER => cluster
                    .replace(ClusterId::new(utf8(value, "cluster")?)?)
                    .is_some(),
                field::TOKEN => token
                    .replace(TokenText::new(utf8(value, "token")?)?)
                    .is_some(),
                field::SPKI_PIN => spki_pin.replace(exact(value, "pin")?).is_some(),
                field::EXPIRES => expires
                    .replace(u64::from_be_bytes(exact(value, "expiry")?))
                    .is_some(),
                field::REGISTER => register
                    .replace(String::from(utf8(value, "registration URL")?))
                    .is_some(),
                _ => false,
            };
            if repeated {
                return Err(JoinError::Damaged);
            }
        }
        if !(1..=JOIN_HUBS_MAX).contains(&hubs.len()) || hubs.iter().any(|h| !hub_is_usable(h)) {
            return Err(JoinError::Field("hub URL"));
        }
        if register.as_deref().is_some_and(|url| !hub_is_usable(url)) {
            return Err(JoinError::Field("registration URL"));
        }
        Ok(JoinString {
            hubs,
            cluster: cluster.ok_or(JoinError::Field("cluster"))?,
            token: token.ok_or(JoinError::Field("token"))?,
            spki_pin,
            expires_unix_s: expires.unwrap_or(0),
            register,
        })
    }

    /// Whether the string is past its time.
    pub fn is_expired(&self, unix_s: u64) -> bool {
        self.expires_unix_s != 0 && unix_s >= self.expires_unix_s
    }
}

fn hub_is_usable(hub: &str) -> bool {
    (1..=JOIN_HUB_BYTES_MAX).contains(&hub.len()) && hub.bytes().all(|b| b.is_ascii_graphic())
}

fn utf8<'a>(value: &'a [u8], field: &'static str) -> Result<&'a str, JoinError> {
    core::str::from_utf8(value).map_err(|_| JoinError::Field(field))
}

fn exact<const N: usize>(value: &[u8], field: &'static str) -> Result<[u8; N], JoinError> {
    value.try_into().map_err(|_| JoinError::Field(field))
}
