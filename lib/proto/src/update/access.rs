//! Who may enter a cluster, and as whom.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::codec::{DecodeError, Fields, Writer, push};
use crate::limits::{ACCESS_GROUPS_MAX, ACCESS_TEXT_BYTES_MAX};
use crate::wire::Reader;

/// How much somebody may do (P-18.1), lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Sees.
    Read,
    /// Sees, and reads logs.
    Triage,
    /// Changes workloads.
    Write,
    /// Changes all of a cluster but rights.
    Maintain,
    /// Everything.
    Admin,
}

/// How people of an identity provider become identities of a cluster (P-18).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The group of the person's highest tier.
    #[default]
    Tier,
    /// Nobody is impersonated: all who may enter act as the agent.
    Shared,
    /// The person's own groups behind a prefix.
    Raw,
}

/// What of a session names the person upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UserClaim {
    /// The subject.
    #[default]
    Subject,
    /// The e-mail, which an identity provider verified.
    Email,
}

/// The right of a group in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The group, or one person as `user:` and their subject.
    pub group: Arc<str>,
    /// How much.
    pub tier: Tier,
    /// Over from then on, wall clock ms; `None` = no end.
    pub not_after_unix_ms: Option<u64>,
}

/// The access policy of a cluster. The default lets nobody in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The mode.
    pub mode: Mode,
    /// Who may do how much.
    pub grants: Vec<Grant>,
    /// In front of the groups that are sent; `None` = the mode's own.
    pub prefix: Option<Arc<str>>,
    /// Who may enter in mode `shared`.
    pub allowed_groups: Vec<Arc<str>>,
    /// Only what reads passes, whatever the grants say.
    pub read_only: bool,
    /// What names the person.
    pub user_claim: UserClaim,
}

mod field {
    pub(super) const MODE: u8 = 1;
    pub(super) const GRANT: u8 = 2;
    pub(super) const PREFIX: u8 = 3;
    pub(super) const ALLOWED_GROUP: u8 = 4;
    pub(super) const READ_ONLY: u8 = 5;
    pub(super) const USER_CLAIM: u8 = 6;
}

mod grant {
    pub(super) const GROUP: u8 = 1;
    pub(super) const TIER: u8 = 2;
    pub(super) const NOT_AFTER: u8 = 3;
}

impl Tier {
    /// Every one, lowest first.
    pub const ALL: [Self; 5] = [
        Self::Read,
        Self::Triage,
        Self::Write,
        Self::Maintain,
        Self::Admin,
    ];

    /// The word in API, files, cookies and groups.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Triage => "triage",
            Self::Write => "write",
            Self::Maintain => "maintain",
            Self::Admin => "admin",
        }
    }

    /// The tier of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.as_str() == word)
    }

    /// The role that Radar connectors know for it (P-18.4).
    pub fn radar_role(self) -> &'static str {
        match self {
            Self::Admin | Self::Maintain => "owner",
            Self::Write | Self::Triage => "member",
            Self::Read => "viewer",
        }
    }

    /// From 1, so that none is the default of the encoding.
    fn code(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Triage => 2,
            Self::Write => 3,
            Self::Maintain => 4,
            Self::Admin => 5,
        }
    }
}

impl Mode {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Tier, Self::Shared, Self::Raw];

    /// The word in API and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tier => "tier",
            Self::Shared => "shared",
            Self::Raw => "raw",
        }
    }

    /// The mode of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == word)
    }
}

impl UserClaim {
    /// The word in API and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Subject => "sub",
            Self::Email => "email",
        }
    }

    /// The claim of a word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Subject, Self::Email]
            .into_iter()
            .find(|claim| claim.as_str() == word)
    }
}

pub(super) fn write_access(access: &Access) -> Vec<u8> {
    let mut out = Writer::nested();
    out.u8(
        field::MODE,
        match access.mode {
            Mode::Tier => 0,
            Mode::Shared => 1,
            Mode::Raw => 2,
        },
    );
    for held in &access.grants {
        let mut nested = Writer::nested();
        nested.text(grant::GROUP, &held.group);
        nested.u8(grant::TIER, held.tier.code());
        let not_after = held.not_after_unix_ms.map_or(0, |at| at.max(1));
        nested.u64(grant::NOT_AFTER, not_after);
        out.bytes(field::GRANT, &nested.finish());
    }
    if let Some(prefix) = &access.prefix {
        out.text(field::PREFIX, prefix);
    }
    for group in &access.allowed_groups {
        out.text(field::ALLOWED_GROUP, group);
    }
    out.u8(field::READ_ONLY, u8::from(access.read_only));
    out.u8(
        field::USER_CLAIM,
        u8::from(access.user_claim == UserClaim::Email),
    );
    out.finish()
}

pub(super) fn read_access(value: Reader<'_>) -> Result<Access, DecodeError> {
    let mut fields = Fields::nested("access", field::USER_CLAIM, value);
    let mut read = Access::default();
    while let Some((field, value)) = fields.next(&[field::GRANT, field::ALLOWED_GROUP])? {
        match field {
            field::MODE => {
                read.mode = match fields.u8(field, value)? {
                    1 => Mode::Shared,
                    2 => Mode::Raw,
                    _ => return Err(fields.error(field)),
                };
            }
            field::GRANT => {
                let grant = read_grant(value)?;
                push(&mut read.grants, grant, "grants", ACCESS_GROUPS_MAX)?;
            }
            field::PREFIX => read.prefix = Some(short(&fields, field, value)?),
            field::ALLOWED_GROUP => {
                let group = short(&fields, field, value)?;
                let list = &mut read.allowed_groups;
                push(list, group, "allowed groups", ACCESS_GROUPS_MAX)?;
            }
            field::READ_ONLY => read.read_only = fields.flag(field, value)?,
            field::USER_CLAIM => {
                fields.flag(field, value)?;
                read.user_claim = UserClaim::Email;
            }
            _ => {}
        }
    }
    Ok(read)
}

fn read_grant(value: Reader<'_>) -> Result<Grant, DecodeError> {
    let mut fields = Fields::nested("grant", grant::NOT_AFTER, value);
    let (mut group, mut tier, mut not_after_unix_ms) = (None, None, None);
    while let Some((field, value)) = fields.next(&[])? {
        match field {
            grant::GROUP => group = Some(short(&fields, field, value)?),
            grant::TIER => {
                let code = fields.u8(field, value)?;
                let known = Tier::ALL.into_iter().find(|tier| tier.code() == code);
                tier = Some(known.ok_or(fields.error(field))?);
            }
            grant::NOT_AFTER => not_after_unix_ms = Some(fields.u64(field, value)?),
            _ => {}
        }
    }
    Ok(Grant {
        group: group.ok_or(fields.error(grant::GROUP))?,
        tier: tier.ok_or(fields.error(grant::TIER))?,
        not_after_unix_ms,
    })
}

fn short<'a>(fields: &Fields<'a>, field: u8, value: Reader<'a>) -> Result<Arc<str>, DecodeError> {
    let text = fields.text(field, value)?;
    fields.check(field, text.len() <= ACCESS_TEXT_BYTES_MAX)?;
    Ok(text)
}
