//! A session sealed into a cookie: nacl/secretbox (XSalsa20-Poly1305) under a ring of
//! two keys, so that a key is changed without signing anybody out (R-19, L-34).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crypto_secretbox::aead::{Aead as _, KeyInit as _};
use crypto_secretbox::{Nonce, XSalsa20Poly1305};
use culvert_proto::update::{CookieKey, SignIn};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{SESSION_COOKIE, Tier};

/// Longest value of a cookie: a browser keeps 4 KiB, its name and flags included.
pub const COOKIE_BYTES_MAX: usize = 3_900;
/// Cookies of a request that are looked at.
pub const COOKIES_MAX: usize = 32;
/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a nonce; each is drawn at random.
pub const NONCE_BYTES: usize = 24;
/// The form of what is sealed.
const VERSION: u8 = 1;
/// A sealing clock may be ahead of the opening one by so much.
const AHEAD_S_MAX: u64 = 300;

type KeyId = [u8; 8];

/// A key that seals. It has no `Debug`; its id may be shown.
pub struct Key {
    id: KeyId,
    secret: Zeroizing<[u8; KEY_BYTES]>,
}

/// The key that seals and the one that sealed before it.
pub struct Ring {
    /// Seals and opens.
    pub current: Key,
    /// Opens.
    pub previous: Option<Key>,
}

/// Somebody who signed in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Who: unique within the provider.
    #[serde(rename = "s")]
    pub subject: String,
    /// Empty where there is none.
    #[serde(rename = "m")]
    pub email: String,
    /// Groups, as the identity provider says.
    #[serde(rename = "g")]
    pub groups: Vec<String>,
    /// How much they may do; nothing where no group has a tier.
    #[serde(rename = "t", with = "crate::word")]
    pub tier: Option<Tier>,
    /// Who vouched: the provider's name, or `break-glass`.
    #[serde(rename = "p")]
    pub provider: String,
    /// Signed in, seconds since 1970.
    #[serde(rename = "i")]
    pub issued_unix_s: u64,
    /// Sealed last, seconds since 1970.
    #[serde(rename = "r")]
    pub sealed_unix_s: u64,
    /// Ends unless it is sealed anew by then.
    #[serde(rename = "d")]
    pub idle_until_unix_s: u64,
    /// Ends then in any case.
    #[serde(rename = "x")]
    pub expires_unix_s: u64,
    /// Dead once the subject's epoch is higher.
    #[serde(rename = "e")]
    pub epoch: u64,
}

/// How long sessions live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Without a request.
    pub idle_s: u64,
    /// In any case.
    pub absolute_s: u64,
}

/// What stands in the box.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Boxed<T> {
    /// The cookie's name: a box is good for its own cookie only.
    n: String,
    v: u8,
    c: T,
}

/// Why a session does not fit into a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Too many or too long groups.
    #[error("the session has {0} bytes, more than a cookie holds: fewer groups are needed")]
    TooLarge(usize),
    /// The cipher refused.
    #[error("the session cannot be sealed")]
    Cipher,
}

/// Why a cookie is no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CookieError {
    /// Longer than any that we make.
    #[error("too long")]
    TooLong,
    /// Not of our form.
    #[error("not of this form")]
    Form,
    /// Sealed with a key that is not in the ring.
    #[error("sealed with a key that is not known here")]
    UnknownKey,
    /// Changed on its way, or made by somebody else.
    #[error("the seal is broken")]
    Seal,
    /// Of another cookie.
    #[error("it belongs to another cookie")]
    OtherCookie,
    /// Its time is over, or nobody used it.
    #[error("it has ended")]
    Expired,
    /// Sealed in the future.
    #[error("it is of the future: clocks differ by more than 5 minutes")]
    Future,
    /// The subject signed out everywhere.
    #[error("the subject signed out everywhere")]
    SignedOut,
}

impl Key {
    /// A key by its id and secret; both are derived from the cookie password.
    #[must_use]
    pub fn new(id: KeyId, secret: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self { id, secret }
    }

    /// Its id. Safe to log.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// As data planes get it, to know sessions by themselves.
    #[must_use]
    pub fn published(&self) -> CookieKey {
        CookieKey {
            id: self.id,
            secret: self.secret.clone(),
        }
    }

    fn cipher(&self) -> XSalsa20Poly1305 {
        XSalsa20Poly1305::new((&*self.secret).into())
    }
}

impl From<&CookieKey> for Key {
    fn from(key: &CookieKey) -> Self {
        Self::new(key.id, key.secret.clone())
    }
}

impl From<&SignIn> for Life {
    fn from(sign_in: &SignIn) -> Self {
        Self {
            idle_s: sign_in.idle_s.into(),
            absolute_s: sign_in.life_s.into(),
        }
    }
}

impl Ring {
    /// The ring that control published; `None` where it holds no key.
    #[must_use]
    pub fn of(sign_in: &SignIn) -> Option<Self> {
        let mut keys = sign_in.keys.iter().map(Key::from);
        Some(Self {
            current: keys.next()?,
            previous: keys.next(),
        })
    }

    /// Seals `session` for the cookie `name` with a fresh random `nonce`.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(
        &self,
        name: &str,
        session: &Session,
        nonce: [u8; NONCE_BYTES],
    ) -> Result<String, SealError> {
        self.seal_box(name, session, nonce)
    }

    /// Opens the value of the cookie `name`. Whether the subject signed out is not known here:
    /// [`Session::is_of_epoch`].
    ///
    /// # Errors
    /// [`CookieError`], the first thing that is wrong with it.
    pub fn open(&self, name: &str, text: &str, now_unix_s: u64) -> Result<Session, CookieError> {
        let session = self.open_box::<Session>(name, text)?;
        session.is_in_time(now_unix_s)?;
        Ok(session)
    }

    pub(crate) fn seal_box<T: Serialize>(
        &self,
        name: &str,
        content: &T,
        nonce: [u8; NONCE_BYTES],
    ) -> Result<String, SealError> {
        let boxed = Boxed {
            n: name.to_owned(),
            v: VERSION,
            c: content,
        };
        let plain = serde_json::to_vec(&boxed).map_err(|_| SealError::Cipher)?;
        let sealed = self.current.cipher().encrypt(&Nonce::from(nonce), &*plain);
        let sealed = sealed.map_err(|_| SealError::Cipher)?;
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.current.id);
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&sealed);
        let text = URL_SAFE_NO_PAD.encode(bytes);
        if text.len() > COOKIE_BYTES_MAX {
            return Err(SealError::TooLarge(text.len()));
        }
        Ok(text)
    }

    /// `Set-Cookie` for `session`, sealed with a fresh random `nonce`.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn set_cookie(
        &self,
        session: &Session,
        nonce: [u8; NONCE_BYTES],
        now_unix_s: u64,
    ) -> Result<String, SealError> {
        let value = self.seal(SESSION_COOKIE, session, nonce)?;
        let rest = session.expires_unix_s.saturating_sub(now_unix_s);
        Ok(format!(
            "{SESSION_COOKIE}={value}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={rest}"
        ))
    }

    pub(crate) fn open_box<T: DeserializeOwned>(
        &self,
        name: &str,
        text: &str,
    ) -> Result<T, CookieError> {
        if text.len() > COOKIE_BYTES_MAX {
            return Err(CookieError::TooLong);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| CookieError::Form)?;
        let (version, rest) = bytes.split_first().ok_or(CookieError::Form)?;
        if *version != VERSION {
            return Err(CookieError::Form);
        }
        let (id, rest) = rest.split_first_chunk::<8>().ok_or(CookieError::Form)?;
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(CookieError::Form)?;
        let keys = std::iter::once(&self.current).chain(&self.previous);
        let mut keys = keys.filter(|key| key.id == *id);
        let key = keys.next().ok_or(CookieError::UnknownKey)?;
        let plain = key.cipher().decrypt(&Nonce::from(*nonce), sealed);
        let plain = plain.map_err(|_| CookieError::Seal)?;
        let boxed: Boxed<T> = serde_json::from_slice(&plain).map_err(|_| CookieError::Form)?;
        if boxed.n != name {
            return Err(CookieError::OtherCookie);
        }
        if boxed.v != VERSION {
            return Err(CookieError::Form);
        }
        Ok(boxed.c)
    }

    /// Whether a value was sealed with the key before the current one.
    #[must_use]
    pub fn is_of_previous(&self, text: &str) -> bool {
        // The first nine bytes are twelve characters.
        let start = text
            .get(..12)
            .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let previous = self.previous.as_ref();
        previous.is_some_and(|key| start.is_some_and(|start| start[1..] == key.id))
    }
}

impl Session {
    /// A session that begins now.
    #[must_use]
    pub fn begin(mut self, life: Life, now_unix_s: u64) -> Self {
        self.issued_unix_s = now_unix_s;
        self.expires_unix_s = now_unix_s.saturating_add(life.absolute_s);
        self.renewed(life, now_unix_s)
    }

    /// The same, used just now.
    #[must_use]
    pub fn renewed(mut self, life: Life, now_unix_s: u64) -> Self {
        self.sealed_unix_s = now_unix_s;
        let idle = now_unix_s.saturating_add(life.idle_s);
        self.idle_until_unix_s = idle.min(self.expires_unix_s);
        self
    }

    /// Whether half of the time without a request is over: then it is sealed anew.
    #[must_use]
    pub fn wants_renewal(&self, life: Life, now_unix_s: u64) -> bool {
        let is_last = self.idle_until_unix_s >= self.expires_unix_s;
        !is_last && now_unix_s.saturating_sub(self.sealed_unix_s) >= life.idle_s / 2
    }

    /// Whether it outlives the last time that the subject signed out everywhere.
    #[must_use]
    pub fn is_of_epoch(&self, epoch: u64) -> bool {
        self.epoch >= epoch
    }

    /// Whether it is younger than sessions may become now: a life that was cut short ends
    /// those that were promised more.
    #[must_use]
    pub fn is_within(&self, life: Life, now_unix_s: u64) -> bool {
        now_unix_s < self.issued_unix_s.saturating_add(life.absolute_s)
    }

    /// Whether it has not ended, and was not sealed in the future.
    ///
    /// # Errors
    /// [`CookieError::Expired`] and [`CookieError::Future`].
    pub fn is_in_time(&self, now_unix_s: u64) -> Result<(), CookieError> {
        if now_unix_s >= self.expires_unix_s || now_unix_s >= self.idle_until_unix_s {
            return Err(CookieError::Expired);
        }
        if self.sealed_unix_s > now_unix_s.saturating_add(AHEAD_S_MAX) {
            return Err(CookieError::Future);
        }
        Ok(())
    }
}

/// The value of the cookie `name` in a `Cookie` header. Two of them, or more cookies than
/// are looked at, are none: nobody sends them who means well.
#[must_use]
pub fn find<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    find_among([header], name)
}

/// As [`find`], where HTTP/2 split the header into several lines.
#[must_use]
pub fn find_among<'a>(headers: impl IntoIterator<Item = &'a str>, name: &str) -> Option<&'a str> {
    let mut found = None;
    let pairs = headers.into_iter().flat_map(|header| header.split(';'));
    for (number, pair) in pairs.enumerate() {
        if number == COOKIES_MAX {
            return None;
        }
        let Some((key, value)) = pair.split_once('=') else {
            continue;
        };
        if key.trim() == name {
            if found.is_some() {
                return None;
            }
            found = Some(value.trim());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_763_683_200;
    const LIFE: Life = Life {
        idle_s: 1_800,
        absolute_s: 8 * 3_600,
    };

    fn key(n: u8) -> Key {
        Key::new([n; 8], Zeroizing::new([n; KEY_BYTES]))
    }

    fn ring(current: u8, previous: Option<u8>) -> Ring {
        Ring {
            current: key(current),
            previous: previous.map(key),
        }
    }

    fn session() -> Session {
        let blank = Session {
            subject: "ana".to_owned(),
            email: "ana@example.test".to_owned(),
            groups: vec!["ops".to_owned()],
            tier: Some(Tier::Write),
            provider: "corp".to_owned(),
            issued_unix_s: 0,
            sealed_unix_s: 0,
            idle_until_unix_s: 0,
            expires_unix_s: 0,
            epoch: 3,
        };
        blank.begin(LIFE, NOW)
    }

    #[test]
    fn a_session_comes_back_until_it_ends() {
        let ring = ring(1, None);
        let text = ring.seal(SESSION_COOKIE, &session(), [9; 24]).unwrap();
        let open = |now| ring.open(SESSION_COOKIE, &text, now);
        assert_eq!(open(NOW), Ok(session()));
        for (now, verdict) in [
            (NOW + LIFE.idle_s - 1, Ok(session())),
            (NOW + LIFE.idle_s, Err(CookieError::Expired)),
            (NOW + 86_400, Err(CookieError::Expired)),
            (NOW - 300, Ok(session())),
            (NOW - 301, Err(CookieError::Future)),
        ] {
            assert_eq!(open(now), verdict, "{now}");
        }
        // Used now and then it lives to its absolute end, and no longer.
        let mut held = session();
        let mut now = NOW;
        while now + 900 < held.expires_unix_s {
            now += 900;
            assert!(held.wants_renewal(LIFE, now) || held.idle_until_unix_s == held.expires_unix_s);
            held = held.renewed(LIFE, now);
        }
        assert!(held.idle_until_unix_s <= NOW + LIFE.absolute_s);
        assert!(held.is_in_time(NOW + LIFE.absolute_s).is_err());
        let short = Life {
            absolute_s: 60,
            ..LIFE
        };
        assert!(session().is_within(short, NOW + 59) && !session().is_within(short, NOW + 60));
        assert!(session().is_of_epoch(3) && !session().is_of_epoch(4));
    }

    #[test]
    fn a_key_is_changed_and_nobody_is_signed_out_while_the_old_one_is_in_the_ring() {
        let text = ring(1, None)
            .seal(SESSION_COOKIE, &session(), [9; 24])
            .unwrap();
        let overlap = ring(2, Some(1));
        assert!(overlap.open(SESSION_COOKIE, &text, NOW).is_ok());
        assert!(overlap.is_of_previous(&text));
        let anew = overlap.seal(SESSION_COOKIE, &session(), [8; 24]).unwrap();
        assert!(!overlap.is_of_previous(&anew));
        let after = ring(2, None);
        assert_eq!(
            after.open(SESSION_COOKIE, &text, NOW),
            Err(CookieError::UnknownKey)
        );
        assert!(after.open(SESSION_COOKIE, &anew, NOW).is_ok());
        // The id alone is not the key.
        let forged = Ring {
            current: Key::new([2; 8], Zeroizing::new([7; KEY_BYTES])),
            previous: None,
        };
        let forged = forged.seal(SESSION_COOKIE, &session(), [8; 24]).unwrap();
        assert_eq!(
            after.open(SESSION_COOKIE, &forged, NOW),
            Err(CookieError::Seal)
        );
    }

    #[test]
    fn a_published_ring_opens_what_the_other_sealed() {
        let ours = ring(2, Some(1));
        let keys = [&ours.current].into_iter().chain(&ours.previous);
        let mut sign_in = SignIn {
            keys: keys.map(Key::published).collect(),
            idle_s: 60,
            life_s: 600,
            origins: Vec::new(),
        };
        let theirs = Ring::of(&sign_in).unwrap();
        for sealed_by in [ring(2, None), ring(1, None)] {
            let text = sealed_by.seal(SESSION_COOKIE, &session(), [9; 24]).unwrap();
            assert_eq!(theirs.open(SESSION_COOKIE, &text, NOW), Ok(session()));
        }
        let life = Life::from(&sign_in);
        assert_eq!((life.idle_s, life.absolute_s), (60, 600));
        sign_in.keys.clear();
        assert!(Ring::of(&sign_in).is_none());
    }

    #[test]
    fn each_byte_counts_and_a_box_is_of_one_cookie() {
        let ring = ring(1, None);
        let text = ring.seal(SESSION_COOKIE, &session(), [9; 24]).unwrap();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(
                ring.open(SESSION_COOKIE, &changed, NOW).is_err(),
                "byte {at}"
            );
        }
        for cut in 0..text.len() {
            assert!(
                ring.open(SESSION_COOKIE, &text[..cut], NOW).is_err(),
                "cut at {cut}"
            );
        }
        let other = ring.open(crate::LOGIN_COOKIE, &text, NOW);
        assert_eq!(other, Err(CookieError::OtherCookie));
        let long = "A".repeat(COOKIE_BYTES_MAX + 1);
        assert_eq!(
            ring.open(SESSION_COOKIE, &long, NOW),
            Err(CookieError::TooLong)
        );
        let mut many = session();
        many.groups = (0..400).map(|n| format!("group-{n}")).collect();
        let refused = ring.seal(SESSION_COOKIE, &many, [9; 24]);
        assert!(matches!(refused, Err(SealError::TooLarge(_))));
    }

    #[test]
    fn the_box_is_nacls_own() {
        // crypto_secretbox of NaCl's tests: first bytes of the authenticator and the text.
        let secret: [u8; 32] = [
            0x1b, 0x27, 0x55, 0x64, 0x73, 0xe9, 0x85, 0xd4, 0x62, 0xcd, 0x51, 0x19, 0x7a, 0x9a,
            0x46, 0xc7, 0x60, 0x09, 0x54, 0x9e, 0xac, 0x64, 0x74, 0xf2, 0x06, 0xc4, 0xee, 0x08,
            0x44, 0xf6, 0x83, 0x89,
        ];
        let nonce: [u8; 24] = [
            0x69, 0x69, 0x6e, 0xe9, 0x55, 0xb6, 0x2b, 0x73, 0xcd, 0x62, 0xbd, 0xa8, 0x75, 0xfc,
            0x73, 0xd6, 0x82, 0x19, 0xe0, 0x03, 0x6b, 0x7a, 0x0b, 0x37,
        ];
        let key = Key::new([0; 8], Zeroizing::new(secret));
        let text = [
            0xbe, 0x07, 0x5f, 0xc5, 0x3c, 0x81, 0xf2, 0xd5, 0xcf, 0x14, 0x13, 0x16,
        ];
        let sealed = key
            .cipher()
            .encrypt(&Nonce::from(nonce), &text[..])
            .unwrap();
        assert_eq!(
            sealed[16..],
            [
                0x8e, 0x99, 0x3b, 0x9f, 0x48, 0x68, 0x12, 0x73, 0xc2, 0x96, 0x50, 0xba
            ]
        );
    }

    #[test]
    fn a_header_gives_one_cookie_or_none() {
        for (header, value) in [
            ("a=1; __Host-culvert_session=v; b=2", Some("v")),
            ("__Host-culvert_session=v", Some("v")),
            ("__host-culvert_session=v", None),
            ("x__Host-culvert_session=v", None),
            ("__Host-culvert_session=v; __Host-culvert_session=w", None),
            ("", None),
            (";;;=;", None),
        ] {
            assert_eq!(find(header, SESSION_COOKIE), value, "{header}");
        }
        for (lines, value) in [
            (["a=1", "__Host-culvert_session=v"], Some("v")),
            (
                ["__Host-culvert_session=v", "__Host-culvert_session=w"],
                None,
            ),
        ] {
            assert_eq!(find_among(lines, SESSION_COOKIE), value, "{lines:?}");
        }
        let many = format!("{}{SESSION_COOKIE}=v", "a=1;".repeat(COOKIES_MAX));
        assert_eq!(find(&many, SESSION_COOKIE), None);
    }

    proptest! {
        #[test]
        fn no_cookie_panics_or_opens(text in "[A-Za-z0-9_-]{0,400}") {
            prop_assert!(ring(1, Some(2)).open(SESSION_COOKIE, &text, NOW).is_err());
            let _ = ring(1, Some(2)).is_of_previous(&text);
        }

        #[test]
        fn any_subject_and_groups_come_back(subject in ".{1,40}", groups in prop::collection::vec(".{0,20}", 0..8)) {
            let held = Session { subject, groups, ..session() };
            let ring = ring(1, None);
            let text = ring.seal(SESSION_COOKIE, &held, [3; 24]).unwrap();
            prop_assert!(text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_'));
            prop_assert_eq!(ring.open(SESSION_COOKIE, &text, NOW), Ok(held));
        }
    }
}
