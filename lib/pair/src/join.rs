//! The pair join string `cvr_...`: all that the broker's side needs, in one word.

use culvert_proto::pair::RendezvousId;
use zeroize::Zeroizing;

use crate::code::PairingCode;
use crate::name::{check_name, check_relay};
use crate::word::{Kind, WordError};

/// Relays in one string.
pub const JOIN_RELAYS_MAX: usize = 8;

const KIND: Kind = Kind {
    what: "pair join string",
    prefix: "cvr_",
    version: 1,
    // Eight relays of the longest name, and the rest, in base64.
    characters_max: 4 << 10,
};

/// A pair join string's content. It holds a pairing code: no `Debug`.
pub struct PairJoin {
    /// The pair's name.
    pub name: String,
    /// `host:port` of each relay; 1 to 8.
    pub relays: Vec<String>,
    /// The hash of the pair's CA, where it is known: then no other CA is taken.
    pub info_hash: Option<RendezvousId>,
    /// The secret that both sides prove.
    pub code: PairingCode,
    /// When the code stops being useful, unix s; 0 = not said.
    pub expires_unix_s: u64,
}

mod field {
    pub(super) const RELAY: u8 = 1;
    pub(super) const NAME: u8 = 2;
    pub(super) const CODE: u8 = 3;
    pub(super) const INFO_HASH: u8 = 4;
    pub(super) const EXPIRES: u8 = 5;
}

impl PairJoin {
    /// The word to copy. It is a secret.
    ///
    /// # Errors
    /// When a field cannot stand in one.
    pub fn encode(&self) -> Result<Zeroizing<String>, WordError> {
        self.check()?;
        let mut content = Zeroizing::new(Vec::with_capacity(KIND.characters_max));
        for relay in &self.relays {
            put(&mut content, field::RELAY, relay.as_bytes());
        }
        put(&mut content, field::NAME, self.name.as_bytes());
        put(&mut content, field::CODE, self.code.expose());
        if let Some(hash) = &self.info_hash {
            put(&mut content, field::INFO_HASH, &hash.0);
        }
        if self.expires_unix_s != 0 {
            put(
                &mut content,
                field::EXPIRES,
                &self.expires_unix_s.to_be_bytes(),
            );
        }
        KIND.seal(&content)
    }

    /// Reads the word; white space around it is ignored, and so are fields of later minor versions.
    ///
    /// # Errors
    /// When it is no pair join string, damaged, or of another version.
    pub fn decode(word: &str) -> Result<PairJoin, WordError> {
        let content = KIND.open(word)?;
        let (mut relays, mut name, mut code) = (Vec::new(), None, None);
        let (mut info_hash, mut expires) = (None, None);
        let mut rest = content.as_slice();
        while !rest.is_empty() {
            let (kind, value, after) = take(rest).ok_or_else(|| KIND.damaged())?;
            rest = after;
            let repeated = match kind {
                field::RELAY => {
                    relays.push(text(value, "relay")?);
                    relays.len() > JOIN_RELAYS_MAX
                }
                field::NAME => name.replace(text(value, "name")?).is_some(),
                field::CODE => {
                    let bytes = exact(value, "pairing code")?;
                    code.replace(PairingCode::from_bytes(bytes)).is_some()
                }
                field::INFO_HASH => {
                    let hash = RendezvousId(exact(value, "info hash")?);
                    info_hash.replace(hash).is_some()
                }
                field::EXPIRES => expires
                    .replace(u64::from_be_bytes(exact(value, "expiry")?))
                    .is_some(),
                _ => false,
            };
            if repeated {
                return Err(KIND.damaged());
            }
        }
        let join = PairJoin {
            name: name.ok_or_else(|| KIND.field("name"))?,
            relays,
            info_hash,
            code: code.ok_or_else(|| KIND.field("pairing code"))?,
            expires_unix_s: expires.unwrap_or(0),
        };
        join.check()?;
        Ok(join)
    }

    /// Whether the string is past its time.
    #[must_use]
    pub fn is_expired(&self, now_unix_s: u64) -> bool {
        self.expires_unix_s != 0 && now_unix_s >= self.expires_unix_s
    }

    fn check(&self) -> Result<(), WordError> {
        check_name(&self.name).map_err(|_| KIND.field("name"))?;
        let count = (1..=JOIN_RELAYS_MAX).contains(&self.relays.len());
        if !count || self.relays.iter().any(|relay| check_relay(relay).is_err()) {
            return Err(KIND.field("relay"));
        }
        Ok(())
    }
}

/// `type u8 | length u16 | value`
fn put(content: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u16::try_from(value.len()).expect("names and relays were checked to be short");
    content.push(kind);
    content.extend_from_slice(&length.to_be_bytes());
    content.extend_from_slice(value);
}

fn take(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let ([kind, high, low], rest) = bytes.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let (value, after) = rest.split_at_checked(length)?;
    Some((*kind, value, after))
}

fn text(value: &[u8], field: &'static str) -> Result<String, WordError> {
    let text = std::str::from_utf8(value).map_err(|_| KIND.field(field))?;
    Ok(text.to_owned())
}

fn exact<const N: usize>(value: &[u8], field: &'static str) -> Result<[u8; N], WordError> {
    value.try_into().map_err(|_| KIND.field(field))
}
