//! A record as bytes: bounded, canonical, with its version in front.
//!
//! `version u8 | kind u8 | event 16 | ...`; texts are `length u16 | UTF-8`,
//! numbers big-endian. A text that is too long is cut at a character.

use culvert_proto::id::RequestId;

use crate::event::{Actor, Attempted, Ended, EventId, GROUPS_MAX, Outcome, Record, Resource, Verb};

/// Longest encoded record in bytes.
pub const RECORD_BYTES_MAX: usize = 16 * 1024;
const VERSION: u8 = 1;
const ATTEMPTED: u8 = 1;
const ENDED: u8 = 2;
const CARRIED: u8 = 3;

/// Longest texts in bytes.
pub struct TextMax;

impl TextMax {
    /// Subject, address for mail, name of a group.
    pub const NAME: usize = 160;
    /// Method and path.
    pub const ROUTE: usize = 512;
    /// Names within a target; Kubernetes allows 253.
    pub const RESOURCE: usize = 256;
    /// Transport and close reason.
    pub const WORD: usize = 32;
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a later version.
    #[error("audit record of version {0}; this one reads version {VERSION}")]
    Version(u8),
    /// A kind, verb or outcome that this version does not know.
    #[error("audit record with {what} {code}, which is not known here")]
    Unknown {
        /// Of what.
        what: &'static str,
        /// The code seen.
        code: u8,
    },
    /// It ends early, goes on too long, or holds what no encoder writes.
    #[error("audit record is malformed: {0}")]
    Malformed(&'static str),
}

impl Record {
    /// As bytes, at most [`RECORD_BYTES_MAX`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.push(VERSION);
        match self {
            Self::Attempted(attempted) => write_attempted(&mut out, attempted),
            Self::Ended(ended) => write_ended(&mut out, ended),
            Self::Carried {
                id,
                verb,
                has_result,
            } => {
                out.push(CARRIED);
                out.extend_from_slice(&id.0);
                out.extend_from_slice(&[verb.code(), u8::from(*has_result)]);
            }
        }
        out
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader(bytes);
        match reader.u8()? {
            VERSION => {}
            later => return Err(DecodeError::Version(later)),
        }
        let record = match reader.u8()? {
            ATTEMPTED => Self::Attempted(read_attempted(&mut reader)?),
            ENDED => Self::Ended(read_ended(&mut reader)?),
            CARRIED => Self::Carried {
                id: EventId(reader.array()?),
                verb: reader.verb()?,
                has_result: reader.flag()?,
            },
            code => return Err(DecodeError::Unknown { what: "kind", code }),
        };
        match reader.0 {
            [] => Ok(record),
            _ => Err(DecodeError::Malformed("bytes follow it")),
        }
    }
}

fn write_attempted(out: &mut Vec<u8>, attempted: &Attempted) {
    out.push(ATTEMPTED);
    out.extend_from_slice(&attempted.id.0);
    out.extend_from_slice(&attempted.time_unix_ms.to_be_bytes());
    out.extend_from_slice(&attempted.request_id.0);
    out.push(attempted.verb.code());
    text(out, &attempted.transport, TextMax::WORD);
    text(out, &attempted.route, TextMax::ROUTE);
    text(out, &attempted.cluster, TextMax::RESOURCE);
    let resource = &attempted.resource;
    for name in [
        &resource.group,
        &resource.version,
        &resource.resource,
        &resource.namespace,
        &resource.name,
    ] {
        text(out, name, TextMax::RESOURCE);
    }
    let actor = &attempted.actor;
    text(out, &actor.sub, TextMax::NAME);
    text(out, &actor.email, TextMax::NAME);
    let groups = &actor.groups[..actor.groups.len().min(GROUPS_MAX)];
    out.push(u8::try_from(groups.len()).unwrap_or(u8::MAX));
    for group in groups {
        text(out, group, TextMax::NAME);
    }
}

fn read_attempted(reader: &mut Reader<'_>) -> Result<Attempted, DecodeError> {
    let id = EventId(reader.array()?);
    let time_unix_ms = reader.u64()?;
    let request_id = RequestId(reader.array()?);
    let verb = reader.verb()?;
    let transport = reader.text(TextMax::WORD)?;
    let route = reader.text(TextMax::ROUTE)?;
    let cluster = reader.text(TextMax::RESOURCE)?;
    let resource = Resource {
        group: reader.text(TextMax::RESOURCE)?,
        version: reader.text(TextMax::RESOURCE)?,
        resource: reader.text(TextMax::RESOURCE)?,
        namespace: reader.text(TextMax::RESOURCE)?,
        name: reader.text(TextMax::RESOURCE)?,
    };
    let mut actor = Actor {
        sub: reader.text(TextMax::NAME)?,
        email: reader.text(TextMax::NAME)?,
        groups: Vec::new(),
    };
    let groups = usize::from(reader.u8()?);
    if groups > GROUPS_MAX {
        return Err(DecodeError::Malformed("too many groups"));
    }
    for _ in 0..groups {
        actor.groups.push(reader.text(TextMax::NAME)?);
    }
    Ok(Attempted {
        id,
        time_unix_ms,
        request_id,
        verb,
        actor,
        transport,
        route,
        cluster,
        resource,
    })
}

fn write_ended(out: &mut Vec<u8>, ended: &Ended) {
    out.push(ENDED);
    out.extend_from_slice(&ended.id.0);
    out.extend_from_slice(&ended.time_unix_ms.to_be_bytes());
    out.extend_from_slice(&[ended.verb.code(), ended.outcome.code()]);
    out.push(u8::from(ended.stays_open));
    out.extend_from_slice(&ended.status.to_be_bytes());
    for number in [ended.to_service, ended.to_client, ended.duration_ms] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    text(out, &ended.reason, TextMax::WORD);
}

fn read_ended(reader: &mut Reader<'_>) -> Result<Ended, DecodeError> {
    let id = EventId(reader.array()?);
    let time_unix_ms = reader.u64()?;
    let verb = reader.verb()?;
    let code = reader.u8()?;
    let outcome = Outcome::from_code(code).ok_or(DecodeError::Unknown {
        what: "outcome",
        code,
    })?;
    Ok(Ended {
        id,
        time_unix_ms,
        verb,
        outcome,
        stays_open: reader.flag()?,
        status: u16::from_be_bytes(reader.array()?),
        to_service: reader.u64()?,
        to_client: reader.u64()?,
        duration_ms: reader.u64()?,
        reason: reader.text(TextMax::WORD)?,
    })
}

/// Longest encoded [`Ended`] in bytes.
pub(crate) const ENDED_BYTES_MAX: usize = 2 + 16 + 8 + 3 + 2 + 24 + 2 + TextMax::WORD;
/// Length of an encoded [`Record::Carried`] in bytes.
pub(crate) const CARRIED_BYTES: usize = 2 + 16 + 2;

fn text(out: &mut Vec<u8>, text: &str, max: usize) {
    let end = (0..=max.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    let length = u16::try_from(end).unwrap_or_default();
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], DecodeError> {
        let split = self.0.split_at_checked(count);
        let (head, rest) = split.ok_or(DecodeError::Malformed("it ends early"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let split = self.0.split_first_chunk();
        let (head, rest) = split.ok_or(DecodeError::Malformed("it ends early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Malformed("a flag is neither 0 nor 1")),
        }
    }

    fn verb(&mut self) -> Result<Verb, DecodeError> {
        let code = self.u8()?;
        Verb::from_code(code).ok_or(DecodeError::Unknown { what: "verb", code })
    }

    fn text(&mut self, max: usize) -> Result<String, DecodeError> {
        let length = usize::from(u16::from_be_bytes(self.array()?));
        if length > max {
            return Err(DecodeError::Malformed("a text is too long"));
        }
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| DecodeError::Malformed("a text is not UTF-8"))
    }
}
