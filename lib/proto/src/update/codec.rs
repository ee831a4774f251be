//! The common form: a domain that names kind and version, then TLVs with 32-bit lengths in rising
//! order of type. A value has one encoding: fields at their default are left out, lists repeat
//! their type.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;

use super::cluster::{read_cluster, write_cluster};
use super::{Change, Rotation, Settings, Snapshot, StateMessage, Update};
use crate::id::{ClusterId, Generation};
use crate::limits::{CHANGES_MAX, CLUSTERS_MAX, STATE_BYTES_MAX};
use crate::token::TokenText;
use crate::wire::Reader;

const SNAPSHOT_DOMAIN: &[u8] = b"culvert-snapshot/1\0";
const UPDATE_DOMAIN: &[u8] = b"culvert-update/1\0";
const ROTATION_DOMAIN: &[u8] = b"culvert-rotation/1\0";

mod snapshot {
    pub(super) const GENERATION: u8 = 1;
    pub(super) const HUB_ID: u8 = 2;
    pub(super) const ISSUED: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const CLUSTER: u8 = 5;
}

mod update {
    pub(super) const GENERATION: u8 = 1;
    pub(super) const ISSUED: u8 = 2;
    pub(super) const CHANGE: u8 = 3;
}

mod change {
    pub(super) const UPSERT: u8 = 1;
    pub(super) const REMOVE: u8 = 2;
    pub(super) const SETTINGS: u8 = 3;
}

mod settings {
    pub(super) const RATE: u8 = 1;
    pub(super) const SNAPSHOT_AGE_MAX: u8 = 2;
}

mod rotation {
    pub(super) const CLUSTER: u8 = 1;
    pub(super) const TOKEN_ID: u8 = 2;
    pub(super) const NOT_BEFORE: u8 = 3;
    pub(super) const TOKEN: u8 = 4;
}

/// Bytes that are no message of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Over the limit.
    #[error("{length} bytes; at most {STATE_BYTES_MAX} are allowed")]
    TooLong {
        /// Bytes seen.
        length: usize,
    },
    /// Another kind of message, or another version.
    #[error("starts with {seen:?}, which this version does not read; upgrade the older end")]
    Domain {
        /// The first bytes, as text.
        seen: String,
    },
    /// The bytes end inside a value.
    #[error("ends inside a value of {0}")]
    Short(&'static str),
    /// A field is missing, repeated, out of order or impossible.
    #[error("{part}: field {field} is missing, repeated, out of order or impossible")]
    Field {
        /// Part of the message.
        part: &'static str,
        /// Type number.
        field: u8,
    },
    /// A list is over its limit.
    #[error("{part}: more than {max} entries")]
    TooMany {
        /// Which list.
        part: &'static str,
        /// Its limit.
        max: usize,
    },
}

// === Writing ===

pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(domain: &[u8]) -> Self {
        Writer(domain.to_vec())
    }

    pub(super) fn nested() -> Self {
        Writer(Vec::new())
    }

    pub(super) fn bytes(&mut self, field: u8, value: &[u8]) {
        self.0.push(field);
        // Callers bound every value far below 4 GiB; a saturated length is refused by each reader.
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(value);
    }

    pub(super) fn text(&mut self, field: u8, value: &str) {
        if !value.is_empty() {
            self.bytes(field, value.as_bytes());
        }
    }

    pub(super) fn u8(&mut self, field: u8, value: u8) {
        if value != 0 {
            self.bytes(field, &[value]);
        }
    }

    pub(super) fn u32(&mut self, field: u8, value: u32) {
        if value != 0 {
            self.bytes(field, &value.to_be_bytes());
        }
    }

    pub(super) fn u64(&mut self, field: u8, value: u64) {
        if value != 0 {
            self.bytes(field, &value.to_be_bytes());
        }
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

impl Snapshot {
    /// The bytes to sign and to send.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::new(SNAPSHOT_DOMAIN);
        out.u64(snapshot::GENERATION, self.generation.0);
        out.text(snapshot::HUB_ID, &self.hub_id);
        out.u64(snapshot::ISSUED, self.issued_unix_ms);
        if self.settings != Settings::default() {
            out.bytes(snapshot::SETTINGS, &write_settings(&self.settings));
        }
        for cluster in &self.clusters {
            out.bytes(snapshot::CLUSTER, &write_cluster(cluster));
        }
        Bytes::from(out.finish())
    }

    /// Reads a snapshot. Verify the signature over `body` first.
    pub fn decode(body: &[u8]) -> Result<Snapshot, DecodeError> {
        let mut fields = Fields::open("snapshot", snapshot::CLUSTER, SNAPSHOT_DOMAIN, body)?;
        let mut read = Snapshot::default();
        while let Some((field, value)) = fields.next(&[snapshot::CLUSTER])? {
            match field {
                snapshot::GENERATION => read.generation = Generation(fields.u64(field, value)?),
                snapshot::HUB_ID => read.hub_id = fields.text(field, value)?,
                snapshot::ISSUED => read.issued_unix_ms = fields.u64(field, value)?,
                snapshot::SETTINGS => read.settings = read_settings(value)?,
                snapshot::CLUSTER => {
                    let cluster = read_cluster(value)?;
                    let rises = read.clusters.last().is_none_or(|last| last.id < cluster.id);
                    fields.check(field, rises)?;
                    push(
                        &mut read.clusters,
                        Arc::new(cluster),
                        "clusters",
                        CLUSTERS_MAX,
                    )?;
                }
                _ => {}
            }
        }
        Ok(read)
    }
}

impl Update {
    /// The bytes to sign and to send.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::new(UPDATE_DOMAIN);
        out.u64(update::GENERATION, self.generation.0);
        out.u64(update::ISSUED, self.issued_unix_ms);
        for change in &self.changes {
            let mut nested = Writer::nested();
            match change {
                Change::Upsert(state) => nested.bytes(change::UPSERT, &write_cluster(state)),
                Change::Remove(id) => nested.bytes(change::REMOVE, id.as_str().as_bytes()),
                Change::Settings(to) => nested.bytes(change::SETTINGS, &write_settings(to)),
            }
            out.bytes(update::CHANGE, &nested.finish());
        }
        Bytes::from(out.finish())
    }

    /// Reads an update. Verify the signature over `body` first.
    pub fn decode(body: &[u8]) -> Result<Update, DecodeError> {
        let mut fields = Fields::open("update", update::CHANGE, UPDATE_DOMAIN, body)?;
        let mut read = Update::default();
        while let Some((field, value)) = fields.next(&[update::CHANGE])? {
            match field {
                update::GENERATION => read.generation = Generation(fields.u64(field, value)?),
                update::ISSUED => read.issued_unix_ms = fields.u64(field, value)?,
                update::CHANGE => {
                    push(
                        &mut read.changes,
                        read_change(value)?,
                        "changes",
                        CHANGES_MAX,
                    )?;
                }
                _ => {}
            }
        }
        Ok(read)
    }
}

impl Rotation {
    /// The bytes to sign and to send; they hold the token.
    pub fn encode(&self) -> zeroize::Zeroizing<Vec<u8>> {
        let mut out = Writer(Vec::with_capacity(1_024));
        out.0.extend_from_slice(ROTATION_DOMAIN);
        out.text(rotation::CLUSTER, self.cluster.as_str());
        out.text(rotation::TOKEN_ID, &self.token_id);
        out.u64(rotation::NOT_BEFORE, self.not_before_unix_s);
        out.text(rotation::TOKEN, self.token.expose());
        zeroize::Zeroizing::new(out.finish())
    }

    /// Reads a rotation. Verify the signature over `body` first.
    pub fn decode(body: &[u8]) -> Result<Rotation, DecodeError> {
        let mut fields = Fields::open("rotation", rotation::TOKEN, ROTATION_DOMAIN, body)?;
        let (mut cluster, mut token, mut token_id) = (None, None, Arc::from(""));
        let mut not_before_unix_s = 0;
        while let Some((field, value)) = fields.next(&[])? {
            match field {
                rotation::CLUSTER => cluster = Some(fields.cluster_id(field, value)?),
                rotation::TOKEN_ID => token_id = fields.text(field, value)?,
                rotation::NOT_BEFORE => not_before_unix_s = fields.u64(field, value)?,
                rotation::TOKEN => token = TokenText::new(fields.str(field, value)?).ok(),
                _ => {}
            }
        }
        let cluster = cluster.ok_or(fields.error(rotation::CLUSTER))?;
        let token = token.ok_or(fields.error(rotation::TOKEN))?;
        Ok(Rotation {
            cluster,
            token_id,
            not_before_unix_s,
            token,
        })
    }
}

fn write_settings(values: &Settings) -> Vec<u8> {
    let mut out = Writer::nested();
    out.u32(settings::RATE, values.rate_per_second);
    out.u32(settings::SNAPSHOT_AGE_MAX, values.snapshot_age_max_s);
    out.finish()
}

// === Reading ===

pub(super) fn decode_message(body: &Bytes) -> Result<StateMessage, DecodeError> {
    if body.starts_with(UPDATE_DOMAIN) {
        Update::decode(body).map(StateMessage::Update)
    } else if body.starts_with(ROTATION_DOMAIN) {
        Rotation::decode(body).map(StateMessage::Rotation)
    } else {
        Snapshot::decode(body).map(StateMessage::Snapshot)
    }
}

fn read_change(value: Reader<'_>) -> Result<Change, DecodeError> {
    let mut fields = Fields::nested("change", change::SETTINGS, value);
    let mut read = None;
    while let Some((field, value)) = fields.next(&[])? {
        let change = match field {
            change::UPSERT => Change::Upsert(Arc::new(read_cluster(value)?)),
            change::REMOVE => Change::Remove(fields.cluster_id(field, value)?),
            change::SETTINGS => Change::Settings(read_settings(value)?),
            _ => continue,
        };
        fields.check(field, read.replace(change).is_none())?;
    }
    // A change of a kind this version does not know cannot be skipped: the table would be wrong.
    read.ok_or(fields.error(0))
}

fn read_settings(value: Reader<'_>) -> Result<Settings, DecodeError> {
    let mut fields = Fields::nested("settings", settings::SNAPSHOT_AGE_MAX, value);
    let mut read = Settings::default();
    while let Some((field, value)) = fields.next(&[])? {
        match field {
            settings::RATE => read.rate_per_second = fields.u32(field, value)?,
            settings::SNAPSHOT_AGE_MAX => read.snapshot_age_max_s = fields.u32(field, value)?,
            _ => {}
        }
    }
    Ok(read)
}

/// Walks the fields of one part and holds them to rising order. Types above `known_max` belong to
/// later versions and are skipped by the callers.
pub(super) struct Fields<'a> {
    part: &'static str,
    reader: Reader<'a>,
    known_max: u8,
    last: u8,
}

impl<'a> Fields<'a> {
    pub(super) fn open(
        part: &'static str,
        known_max: u8,
        domain: &[u8],
        body: &'a [u8],
    ) -> Result<Self, DecodeError> {
        let length = body.len();
        if length > STATE_BYTES_MAX {
            return Err(DecodeError::TooLong { length });
        }
        match body.strip_prefix(domain) {
            Some(rest) => Ok(Fields::nested(part, known_max, Reader::new(rest))),
            None => {
                let start = body.get(..domain.len()).unwrap_or(body);
                Err(DecodeError::Domain {
                    seen: String::from_utf8_lossy(start).into_owned(),
                })
            }
        }
    }

    pub(super) fn nested(part: &'static str, known_max: u8, reader: Reader<'a>) -> Self {
        Fields {
            part,
            reader,
            known_max,
            last: 0,
        }
    }

    /// The next field. Types rise; known ones may repeat only if they are in `lists`.
    pub(super) fn next(&mut self, lists: &[u8]) -> Result<Option<(u8, Reader<'a>)>, DecodeError> {
        if self.reader.is_empty() {
            return Ok(None);
        }
        let (field, value) = self
            .reader
            .wide_tlv()
            .map_err(|_| DecodeError::Short(self.part))?;
        let may_repeat = field > self.known_max || lists.contains(&field);
        let rises = field > self.last || (field == self.last && may_repeat);
        self.check(field, rises)?;
        self.last = field;
        Ok(Some((field, value)))
    }

    pub(super) fn error(&self, field: u8) -> DecodeError {
        DecodeError::Field {
            part: self.part,
            field,
        }
    }

    pub(super) fn check(&self, field: u8, holds: bool) -> Result<(), DecodeError> {
        if holds {
            Ok(())
        } else {
            Err(self.error(field))
        }
    }

    pub(super) fn exact<const N: usize>(
        &self,
        field: u8,
        mut value: Reader<'_>,
    ) -> Result<[u8; N], DecodeError> {
        value.rest().try_into().map_err(|_| self.error(field))
    }

    /// A number; zero is the default and must have been left out.
    pub(super) fn u64(&self, field: u8, value: Reader<'_>) -> Result<u64, DecodeError> {
        let value = u64::from_be_bytes(self.exact(field, value)?);
        self.check(field, value != 0).map(|()| value)
    }

    pub(super) fn u32(&self, field: u8, value: Reader<'_>) -> Result<u32, DecodeError> {
        let value = u32::from_be_bytes(self.exact(field, value)?);
        self.check(field, value != 0).map(|()| value)
    }

    pub(super) fn u8(&self, field: u8, value: Reader<'_>) -> Result<u8, DecodeError> {
        let [value] = self.exact(field, value)?;
        self.check(field, value != 0).map(|()| value)
    }

    /// Present and 1, or left out.
    pub(super) fn flag(&self, field: u8, value: Reader<'_>) -> Result<bool, DecodeError> {
        self.check(field, self.u8(field, value)? == 1)
            .map(|()| true)
    }

    pub(super) fn str(&self, field: u8, mut value: Reader<'a>) -> Result<&'a str, DecodeError> {
        let text = core::str::from_utf8(value.rest()).map_err(|_| self.error(field))?;
        self.check(field, !text.is_empty()).map(|()| text)
    }

    pub(super) fn text(&self, field: u8, value: Reader<'a>) -> Result<Arc<str>, DecodeError> {
        self.str(field, value).map(Arc::from)
    }

    pub(super) fn cluster_id(
        &self,
        field: u8,
        value: Reader<'a>,
    ) -> Result<ClusterId, DecodeError> {
        ClusterId::new(self.str(field, value)?).map_err(|_| self.error(field))
    }
}

pub(super) fn push<T>(
    list: &mut Vec<T>,
    value: T,
    part: &'static str,
    max: usize,
) -> Result<(), DecodeError> {
    if list.len() >= max {
        return Err(DecodeError::TooMany { part, max });
    }
    list.push(value);
    Ok(())
}
