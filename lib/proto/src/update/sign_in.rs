//! What a data plane needs to know sessions of people by itself.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use zeroize::Zeroizing;

use super::codec::{DecodeError, Fields, Writer, push};
use crate::limits::{COOKIE_KEYS_MAX, ENDED_SUBJECTS_MAX, ORIGINS_MAX, SUBJECT_BYTES_MAX};
use crate::wire::Reader;

/// A key that seals session cookies.
#[derive(Clone, PartialEq, Eq)]
pub struct CookieKey {
    /// Chooses the key of a cookie; may be shown.
    pub id: [u8; 8],
    /// The key itself.
    pub secret: Zeroizing<[u8; 32]>,
}

/// How people are signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignIn {
    /// The key that seals and opens, then the one that only opens; at least one.
    pub keys: Vec<CookieKey>,
    /// Life of a session without a request, s.
    pub idle_s: u32,
    /// Life of a session in any case, s.
    pub life_s: u32,
    /// Origins of our own pages, which may change something with a cookie.
    pub origins: Vec<Arc<str>>,
}

/// Who signed out everywhere, as long as a session of theirs could still live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Sessions that began before it are dead, whoever's they are; wall clock ms.
    pub floor_unix_ms: u64,
    /// Sessions below the epoch are dead. An epoch is the time of the sign-out, wall clock ms.
    pub subjects: BTreeMap<Arc<str>, u64>,
}

mod field {
    pub(super) const KEY: u8 = 1;
    pub(super) const IDLE: u8 = 2;
    pub(super) const LIFE: u8 = 3;
    pub(super) const ORIGIN: u8 = 4;
}

mod key {
    pub(super) const ID: u8 = 1;
    pub(super) const SECRET: u8 = 2;
}

mod ended {
    pub(super) const SUBJECT: u8 = 1;
    pub(super) const EPOCH: u8 = 2;
}

impl fmt::Debug for CookieKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CookieKey({:02x?})", self.id)
    }
}

impl Ended {
    /// Whether a session of `subject` that began at `issued_unix_ms` under `epoch` may live.
    pub fn allows(&self, subject: &str, epoch: u64, issued_unix_ms: u64) -> bool {
        let is_of_epoch = self.subjects.get(subject).is_none_or(|end| epoch >= *end);
        is_of_epoch && issued_unix_ms >= self.floor_unix_ms
    }

    /// Ends the subject's sessions below `epoch`. Where too many are remembered the floor rises
    /// over the oldest: others sign in again, and no ended session lives.
    pub(super) fn end(&mut self, subject: Arc<str>, epoch: u64) {
        let held = self.subjects.entry(subject).or_default();
        *held = epoch.max(*held);
        while self.subjects.len() > ENDED_SUBJECTS_MAX {
            let oldest = self.subjects.iter().min_by_key(|(_, epoch)| **epoch);
            let Some((subject, epoch)) = oldest.map(|(name, at)| (name.clone(), *at)) else {
                return;
            };
            self.subjects.remove(&subject);
            self.floor_unix_ms = epoch.max(self.floor_unix_ms);
        }
    }

    /// Whether [`Ended::forget`] would change anything.
    pub(super) fn holds_before(&self, before_unix_ms: u64) -> bool {
        let mut epochs = self.subjects.values();
        (1..=before_unix_ms).contains(&self.floor_unix_ms)
            || epochs.any(|epoch| *epoch <= before_unix_ms)
    }

    /// Forgets what ended before `before_unix_ms`: no session is that old.
    pub(super) fn forget(&mut self, before_unix_ms: u64) {
        self.subjects.retain(|_, epoch| *epoch > before_unix_ms);
        if self.floor_unix_ms <= before_unix_ms {
            self.floor_unix_ms = 0;
        }
    }
}

pub(super) fn write_sign_in(value: &SignIn) -> Vec<u8> {
    let mut out = Writer::nested();
    for held in &value.keys {
        let mut nested = Writer::nested();
        nested.bytes(key::ID, &held.id);
        nested.bytes(key::SECRET, &*held.secret);
        out.bytes(field::KEY, &nested.finish());
    }
    out.u32(field::IDLE, value.idle_s);
    out.u32(field::LIFE, value.life_s);
    for origin in &value.origins {
        out.text(field::ORIGIN, origin);
    }
    out.finish()
}

pub(super) fn read_sign_in(value: Reader<'_>) -> Result<SignIn, DecodeError> {
    let mut fields = Fields::nested("sign-in", field::ORIGIN, value);
    let mut read = SignIn {
        keys: Vec::new(),
        idle_s: 0,
        life_s: 0,
        origins: Vec::new(),
    };
    while let Some((field, value)) = fields.next(&[field::KEY, field::ORIGIN])? {
        match field {
            field::KEY => push(
                &mut read.keys,
                read_key(value)?,
                "cookie keys",
                COOKIE_KEYS_MAX,
            )?,
            field::IDLE => read.idle_s = fields.u32(field, value)?,
            field::LIFE => read.life_s = fields.u32(field, value)?,
            field::ORIGIN => {
                let origin = fields.text(field, value)?;
                push(&mut read.origins, origin, "origins", ORIGINS_MAX)?;
            }
            _ => {}
        }
    }
    fields.check(field::KEY, !read.keys.is_empty())?;
    Ok(read)
}

fn read_key(value: Reader<'_>) -> Result<CookieKey, DecodeError> {
    let mut fields = Fields::nested("cookie key", key::SECRET, value);
    let (mut id, mut secret) = (None, None);
    while let Some((field, value)) = fields.next(&[])? {
        match field {
            key::ID => id = Some(fields.exact(field, value)?),
            key::SECRET => secret = Some(Zeroizing::new(fields.exact(field, value)?)),
            _ => {}
        }
    }
    Ok(CookieKey {
        id: id.ok_or(fields.error(key::ID))?,
        secret: secret.ok_or(fields.error(key::SECRET))?,
    })
}

/// One subject and its epoch, in snapshots and in updates.
pub(super) fn write_end(subject: &str, epoch: u64) -> Vec<u8> {
    let mut out = Writer::nested();
    out.text(ended::SUBJECT, subject);
    out.u64(ended::EPOCH, epoch);
    out.finish()
}

pub(super) fn read_end(value: Reader<'_>) -> Result<(Arc<str>, u64), DecodeError> {
    let mut fields = Fields::nested("ended session", ended::EPOCH, value);
    let (mut subject, mut epoch) = (None, 0);
    while let Some((field, value)) = fields.next(&[])? {
        match field {
            ended::SUBJECT => {
                let text = fields.text(field, value)?;
                fields.check(field, text.len() <= SUBJECT_BYTES_MAX)?;
                subject = Some(text);
            }
            ended::EPOCH => epoch = fields.u64(field, value)?,
            _ => {}
        }
    }
    let subject = subject.ok_or(fields.error(ended::SUBJECT))?;
    fields.check(ended::EPOCH, epoch > 0)?;
    Ok((subject, epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_session_never_lives_again_however_many_ended() {
        let mut ended = Ended::default();
        assert!(ended.allows("ana", 0, 5));
        for n in 0..ENDED_SUBJECTS_MAX as u64 {
            ended.end(alloc::format!("s{n}").into(), 1_000 + n);
        }
        assert!(ended.allows("ana", 0, 5) && !ended.allows("s0", 0, 5));
        assert!(ended.allows("s0", 1_000, 1_001), "signed in again");
        ended.end("one more".into(), 9_000_000);
        assert_eq!(ended.subjects.len(), ENDED_SUBJECTS_MAX);
        assert!(!ended.allows("s0", 0, 999), "over the floor");
        assert!(
            !ended.allows("ana", 0, 999),
            "who began before signs in again"
        );
        assert!(ended.allows("ana", 0, 1_000));
        ended.end("s5".into(), 3);
        assert!(!ended.allows("s5", 1_004, 9_000), "an epoch never falls");
        ended.forget(9_000_000);
        assert_eq!(ended, Ended::default());
    }

    #[test]
    fn a_key_shows_its_id_alone() {
        let key = CookieKey {
            id: [7; 8],
            secret: Zeroizing::new([0xab; 32]),
        };
        let shown = alloc::format!("{key:?}");
        assert!(shown.contains("07") && !shown.contains("ab") && !shown.contains("171"));
    }
}
