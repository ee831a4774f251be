//! A file of the spool: a header, then records, each in a frame.
//!
//! `mark u16 | length u32 | CRC-32 u32 | record`. The CRC starts with a salt of the
//! segment, so that no text in a record can pass for a frame. After the last frame
//! the file may hold zeros, or what a crash left of a write.

use std::ops::Range;

use crate::codec::{DecodeError, RECORD_BYTES_MAX};
use crate::event::Record;

/// Bytes before the first frame.
pub const HEADER_BYTES: usize = 24;
/// Bytes of a frame beside its record.
pub const FRAME_BYTES: usize = 10;
const MAGIC: &[u8; 8] = b"CULAUD\x00\x01";
const MARK: [u8; 2] = [0xC5, 0xA9];

/// The begin of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sequence of the first record that is shipped from it.
    pub first: u64,
    /// Random.
    pub salt: u32,
}

/// A file that is no segment: a crash came before its header was whole, or it is something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no segment of an audit spool of this version")]
pub struct NoSegment;

/// Bytes between two good frames that are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Where they lie.
    pub at: Range<usize>,
}

/// A record that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Where its frame begins.
    pub offset: usize,
    /// Where it ends.
    pub end: usize,
    /// What it says.
    pub record: Result<Record, DecodeError>,
}

/// What a segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Its begin.
    pub header: Header,
    /// In order.
    pub records: Vec<Seen>,
    /// Damage in the midst; a torn end is none.
    pub damaged: Vec<Damaged>,
    /// Behind the last good frame.
    pub end: usize,
}

impl Header {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..16].copy_from_slice(&self.first.to_be_bytes());
        out[16..20].copy_from_slice(&self.salt.to_be_bytes());
        let crc = crc32fast::hash(&out[..20]);
        out[20..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// Reads the begin of a segment.
    ///
    /// # Errors
    /// [`NoSegment`].
    pub fn decode(bytes: &[u8]) -> Result<Self, NoSegment> {
        let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(NoSegment)?;
        let number = |at: Range<usize>| {
            let part = header[at].iter();
            part.fold(0_u64, |value, byte| (value << 8) | u64::from(*byte))
        };
        let crc = u64::from(crc32fast::hash(&header[..20]));
        if &header[..8] != MAGIC || crc != number(20..24) {
            return Err(NoSegment);
        }
        Ok(Self {
            first: number(8..16),
            salt: u32::try_from(number(16..20)).map_err(|_| NoSegment)?,
        })
    }
}

/// Puts `record` in a frame behind `out`.
pub fn frame(out: &mut Vec<u8>, salt: u32, record: &[u8]) {
    debug_assert!(record.len() <= RECORD_BYTES_MAX, "the encoder holds to it");
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&MARK);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&crc(salt, record).to_be_bytes());
    out.extend_from_slice(record);
}

/// The records in `bytes`, which begin and end with whole frames; stops at what is none.
pub fn payloads(bytes: &[u8], salt: u32) -> impl Iterator<Item = (usize, &[u8])> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let (at, record) = (offset, frame_at(bytes, offset, salt)?);
        offset += FRAME_BYTES + record.len();
        Some((at, record))
    })
}

/// Finds every good record of a segment, whatever a crash or the disk did to it.
///
/// # Errors
/// [`NoSegment`].
pub fn scan(bytes: &[u8]) -> Result<Scanned, NoSegment> {
    let header = Header::decode(bytes)?;
    let mut scanned = Scanned {
        header,
        records: Vec::new(),
        damaged: Vec::new(),
        end: HEADER_BYTES,
    };
    let mut offset = HEADER_BYTES;
    while offset < bytes.len() {
        let Some(record) = frame_at(bytes, offset, header.salt) else {
            offset = next_mark(bytes, offset + 1);
            continue;
        };
        if offset > scanned.end {
            let at = scanned.end..offset;
            scanned.damaged.push(Damaged { at });
        }
        let end = offset + FRAME_BYTES + record.len();
        scanned.records.push(Seen {
            offset,
            end,
            record: Record::decode(record),
        });
        (offset, scanned.end) = (end, end);
    }
    Ok(scanned)
}

fn frame_at(bytes: &[u8], offset: usize, salt: u32) -> Option<&[u8]> {
    let rest = bytes.get(offset..)?.strip_prefix(&MARK)?;
    let (length, rest) = rest.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let record = rest.get(..length).filter(|_| length <= RECORD_BYTES_MAX)?;
    (crc(salt, record) == u32::from_be_bytes(*sum)).then_some(record)
}

fn next_mark(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    let found = rest.windows(2).position(|pair| pair == MARK);
    found.map_or(bytes.len(), |at| from + at)
}

fn crc(salt: u32, record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_be_bytes());
    hasher.update(record);
    hasher.finalize()
}
