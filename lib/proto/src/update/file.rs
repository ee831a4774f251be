//! The signed copy of a snapshot on a data plane's disk. Signatures are made and verified by the
//! crypto of the net crate; here is only the frame.

use alloc::vec::Vec;
use bytes::Bytes;

use crate::limits::STATE_BYTES_MAX;
use crate::wire::Reader;

/// Bytes of an Ed25519 signature.
pub const SNAPSHOT_SIGNATURE_BYTES: usize = 64;

const MAGIC: [u8; 4] = *b"CVSN";
const VERSION: u8 = 1;

/// A message of control with its signature: `magic | version | 0 0 0 | key id[8] | signature[64] |
/// length u32 | body`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// First bytes of SHA-256 of the public key, to choose among known keys.
    pub key_id: [u8; 8],
    /// Ed25519 over `body`, which starts with its own domain.
    pub signature: [u8; SNAPSHOT_SIGNATURE_BYTES],
    /// An encoded snapshot.
    pub body: Bytes,
}

/// A file that is no signed snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Another kind of file.
    #[error("not a snapshot copy of culvert")]
    Magic,
    /// Written by a later version.
    #[error("snapshot copy of format {seen}; this version reads format {VERSION}")]
    Version {
        /// The format seen.
        seen: u8,
    },
    /// Cut, extended or over the limit.
    #[error("the snapshot copy is damaged: its length does not fit")]
    Length,
}

impl SnapshotFile {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(84 + self.body.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, 0, 0, 0]);
        out.extend_from_slice(&self.key_id);
        out.extend_from_slice(&self.signature);
        // A body over the limit gets a length that no reader accepts.
        let length = u32::try_from(self.body.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&self.body);
        out
    }

    /// Reads the frame; the signature is still to be verified.
    pub fn decode(file: &Bytes) -> Result<SnapshotFile, FileError> {
        let mut reader = Reader::new(file);
        if reader.array() != Ok(MAGIC) {
            return Err(FileError::Magic);
        }
        let seen = reader.u8().map_err(|_| FileError::Length)?;
        if seen != VERSION {
            return Err(FileError::Version { seen });
        }
        let (key_id, signature, length) = Self::frame(&mut reader).ok_or(FileError::Length)?;
        let body = reader.rest();
        if body.len() != length || length > STATE_BYTES_MAX {
            return Err(FileError::Length);
        }
        Ok(SnapshotFile {
            key_id,
            signature,
            body: file.slice_ref(body),
        })
    }

    fn frame(reader: &mut Reader<'_>) -> Option<([u8; 8], [u8; SNAPSHOT_SIGNATURE_BYTES], usize)> {
        if reader.array() != Ok([0; 3]) {
            return None;
        }
        let key_id = reader.array().ok()?;
        let signature = reader.array().ok()?;
        Some((key_id, signature, usize::try_from(reader.u32().ok()?).ok()?))
    }
}
