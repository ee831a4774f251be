//! The common form: a domain that names kind and version, then TLVs with 32-bit lengths in rising
//! order of type. A value has one encoding: fields at their default are left out, lists repeat
//! their type.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::id::ClusterId;
use crate::limits::STATE_BYTES_MAX;
use crate::wire::Reader;

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

pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(domain: &[u8]) -> Self {
        Writer(domain.to_vec())
    }

    pub(super) fn with_capacity(domain: &[u8], capacity: usize) -> Self {
        let mut out = Vec::with_capacity(capacity);
        out.extend_from_slice(domain);
        Writer(out)
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
