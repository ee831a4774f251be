//! A pair as its bridge's store keeps it.

mod document;

use std::fmt;
use std::str::FromStr;

use culvert_proto::pair::RendezvousId;
use zeroize::Zeroizing;

use crate::authority::{Authority, LEAF_LIFE_S, MakeError};
use crate::check::Fault;
use crate::code::PairingCode;
use crate::identity::{Identity, IdentityError};
use crate::join::JOIN_RELAYS_MAX;
use crate::name::{NameError, check_relay};
use crate::voucher::{Refused, Use, Voucher};

/// A bridge's certificate is made anew when so little of its life is left, s: a third.
pub const RENEW_BEFORE_S: u64 = LEAF_LIFE_S / 3;
/// Digits of a [`PairId`].
const ID_DIGITS: usize = 8;

/// What a pair is filed under: the first 8 digits of its fingerprint, which is the id under which
/// the relay matches it while it bootstraps, or its info hash when it was set up by hand.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairId(String);

/// The text is no [`PairId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{seen:?} is no pair: 8 hexadecimal digits, as culvert pair prints them")]
pub struct PairIdError {
    /// The text seen.
    pub seen: String,
}

/// One pair: its CA, its bridge, and the code that its broker may use. No `Debug`.
pub struct Registration {
    id: PairId,
    relays: Vec<String>,
    created_unix_s: u64,
    authority: Authority,
    bridge: Identity,
    issue: Option<Issue>,
}

/// A pairing code that was handed out.
struct Issue {
    /// Forgotten when its broker has confirmed, unless that may come again.
    code: Option<PairingCode>,
    /// Whether the code is the hash of the broker's bootstrap key.
    is_bound: bool,
    voucher: Voucher,
}

/// Why a registration cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The document is no registration.
    #[error("the registration is damaged: {problem}")]
    Damaged {
        /// What is wrong with it.
        problem: String,
    },
    /// A later version wrote it.
    #[error("registration of version {seen}; this program reads version 1: upgrade")]
    Version {
        /// The version seen.
        seen: u64,
    },
    /// The pairing code is another pair's.
    #[error("the pairing code is that of pair {code}, not of pair {registered}")]
    OtherPair {
        /// Whose it is.
        code: PairId,
        /// The pair registered.
        registered: PairId,
    },
    /// Too many relays.
    #[error("{seen} relays; a pair has at most {JOIN_RELAYS_MAX}")]
    Relays {
        /// How many.
        seen: usize,
    },
    /// A relay is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A certificate cannot be made.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// Its certificates and keys do not go together.
    #[error("the registration's certificates: {0}")]
    Identity(#[from] IdentityError),
}

impl Registration {
    /// A new pair whose broker comes with `code`. `is_bound` says that the code is the hash of the
    /// broker's bootstrap key.
    ///
    /// # Errors
    /// When name or relays are none, or the library fails.
    pub fn new(
        name: &str,
        relays: &[String],
        code: PairingCode,
        is_bound: bool,
        reissue: bool,
        now_unix_s: u64,
    ) -> Result<Registration, RegistrationError> {
        let authority = Authority::generate(name, now_unix_s)?;
        let issue = Issue {
            voucher: Voucher::issue(reissue, now_unix_s),
            is_bound,
            code: None,
        };
        let id = PairId::of(&code.rendezvous_id());
        let mut new = Registration::with(id, relays, authority, now_unix_s)?;
        new.issue = Some(Issue {
            code: Some(code),
            ..issue
        });
        Ok(new)
    }

    /// A new pair whose broker is given its certificate by hand.
    ///
    /// # Errors
    /// When relays are none, or the library fails.
    pub fn by_hand(
        authority: Authority,
        relays: &[String],
        now_unix_s: u64,
    ) -> Result<Registration, RegistrationError> {
        let id = PairId::of(&authority.info_hash());
        Registration::with(id, relays, authority, now_unix_s)
    }

    fn with(
        id: PairId,
        relays: &[String],
        authority: Authority,
        now_unix_s: u64,
    ) -> Result<Registration, RegistrationError> {
        check_relays(relays)?;
        Ok(Registration {
            id,
            relays: relays.to_vec(),
            created_unix_s: now_unix_s,
            bridge: authority.bridge(now_unix_s)?,
            authority,
            issue: None,
        })
    }

    /// Reads what [`Registration::to_document`] wrote.
    ///
    /// # Errors
    /// When it is something else, or was damaged.
    pub fn from_document(bytes: &[u8]) -> Result<Registration, RegistrationError> {
        document::read(bytes)
    }

    /// The registration as a store keeps it: JSON. It is a secret.
    #[must_use]
    pub fn to_document(&self) -> Zeroizing<Vec<u8>> {
        document::write(self)
    }

    /// Opens the same code anew, for a day: the repair of a bootstrap that broke off. CA and info
    /// hash stay, and so does whether the code is bound to a key; `reissue` once said stays said.
    ///
    /// # Errors
    /// When the code is another pair's.
    pub fn reopen(
        &mut self,
        code: PairingCode,
        reissue: bool,
        now_unix_s: u64,
    ) -> Result<(), RegistrationError> {
        let id = PairId::of(&code.rendezvous_id());
        let known = self.issue.as_mut().filter(|_| id == self.id);
        let Some(issue) = known else {
            let registered = self.id.clone();
            return Err(RegistrationError::OtherPair {
                code: id,
                registered,
            });
        };
        let reissue = reissue || issue.voucher.reissue;
        issue.voucher = Voucher::issue(reissue, now_unix_s);
        issue.code = Some(code);
        Ok(())
    }

    /// Puts other relays in the place of the known ones.
    ///
    /// # Errors
    /// When one is none, or they are too many.
    pub fn set_relays(&mut self, relays: &[String]) -> Result<(), RegistrationError> {
        check_relays(relays)?;
        self.relays = relays.to_vec();
        Ok(())
    }

    /// The broker whose bootstrap key has this hash uses the pairing code. Save the registration
    /// before anything is handed out.
    ///
    /// # Errors
    /// When it may not: then nothing has changed.
    pub fn redeem(&mut self, spki_sha256: &[u8; 32], now_unix_s: u64) -> Result<Use, Refused> {
        let issue = self.issue.as_mut().ok_or(Refused::None)?;
        if let Some(code) = &issue.code
            && issue.is_bound
            && !code.is_of_key(spki_sha256)
        {
            return Err(Refused::OtherKey);
        }
        issue.voucher.redeem(spki_sha256, now_unix_s)
    }

    /// The broker holds its certificate: without `reissue` the code is forgotten. Says whether
    /// anything has changed.
    pub fn confirm(&mut self) -> bool {
        let Some(issue) = self.issue.as_mut() else {
            return false;
        };
        let is_news = issue.voucher.confirm();
        if is_news && !issue.voucher.reissue {
            issue.code = None;
        }
        is_news
    }

    /// Makes a new certificate for the bridge when a third of its life is left; says whether.
    ///
    /// # Errors
    /// When the library fails.
    pub fn renew_bridge(&mut self, now_unix_s: u64) -> Result<bool, MakeError> {
        use culvert_proto::pair::Role;
        let left = self.bridge.check(Role::Bridge, now_unix_s);
        let left = left.map_or(0, |life| life.until_unix_s.saturating_sub(now_unix_s));
        if left > RENEW_BEFORE_S {
            return Ok(false);
        }
        self.bridge = self.authority.bridge(now_unix_s)?;
        Ok(true)
    }

    /// What it is filed under.
    #[must_use]
    pub fn id(&self) -> &PairId {
        &self.id
    }

    /// The pair's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.authority.name()
    }

    /// `host:port` of each relay; none where the bridge is told by its own flags.
    #[must_use]
    pub fn relays(&self) -> &[String] {
        &self.relays
    }

    /// When it was made, unix s.
    #[must_use]
    pub fn created_unix_s(&self) -> u64 {
        self.created_unix_s
    }

    /// The pair's CA.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What the bridge shows.
    #[must_use]
    pub fn bridge(&self) -> &Identity {
        &self.bridge
    }

    /// What the pair is found by.
    #[must_use]
    pub fn info_hash(&self) -> RendezvousId {
        self.authority.info_hash()
    }

    /// The code with which a broker may come now; none where that is over, or never was.
    #[must_use]
    pub fn code(&self, now_unix_s: u64) -> Option<&PairingCode> {
        let issue = self.issue.as_ref()?;
        issue
            .code
            .as_ref()
            .filter(|_| issue.voucher.is_usable(now_unix_s))
    }

    /// Whether the code is the hash of the broker's bootstrap key.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.issue.as_ref().is_some_and(|issue| issue.is_bound)
    }

    /// How its code stands; none where it was set up by hand.
    #[must_use]
    pub fn voucher(&self) -> Option<&Voucher> {
        self.issue.as_ref().map(|issue| &issue.voucher)
    }
}

fn check_relays(relays: &[String]) -> Result<(), RegistrationError> {
    if relays.len() > JOIN_RELAYS_MAX {
        return Err(RegistrationError::Relays { seen: relays.len() });
    }
    for relay in relays {
        check_relay(relay)?;
    }
    Ok(())
}

impl From<Fault> for RegistrationError {
    fn from(fault: Fault) -> Self {
        RegistrationError::Identity(fault.into())
    }
}

impl PairId {
    /// The id that begins this fingerprint.
    #[must_use]
    pub fn of(fingerprint: &RendezvousId) -> PairId {
        let mut digits = fingerprint.to_string();
        digits.truncate(ID_DIGITS);
        PairId(digits)
    }

    /// Its 8 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PairId {
    type Err = PairIdError;

    fn from_str(text: &str) -> Result<PairId, PairIdError> {
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == ID_DIGITS && text.bytes().all(digit) {
            return Ok(PairId(text.to_owned()));
        }
        let seen = text.chars().take(ID_DIGITS + 1).collect();
        Err(PairIdError { seen })
    }
}

impl fmt::Display for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
