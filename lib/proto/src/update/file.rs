//! The signed copy of the state on a data plane's disk. Signatures are made and verified by the
//! crypto of the net crate; here is only the frame.

use alloc::vec::Vec;
use bytes::{Buf as _, Bytes};

use crate::limits::STATE_BYTES_MAX;
use crate::wire::Reader;

/// Bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;

const MAGIC: [u8; 4] = *b"CVSN";
const VERSION: u8 = 1;

/// A message of control with its signature: `magic | version | 0 0 0 | key id[8] | signature[64] |
/// length u32 | body`. A copy is a snapshot and the updates that followed it, one frame each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedFrame {
    /// First bytes of SHA-256 of the public key, to choose among known keys.
    pub key_id: [u8; 8],
    /// Ed25519 over `body`, which starts with its own domain.
    pub signature: [u8; SIGNATURE_BYTES],
    /// An encoded snapshot or update.
    pub body: Bytes,
}

/// Bytes that are no signed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Another kind of file.
    #[error("not a signed copy of culvert")]
    Magic,
    /// Written by a later version.
    #[error("signed copy of format {seen}; this version reads format {VERSION}")]
    Version {
        /// The format seen.
        seen: u8,
    },
    /// Cut or over the limit.
    #[error("the signed copy is damaged: its length does not fit")]
    Length,
}

impl SignedFrame {
    /// The frame's bytes.
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

    /// Takes the first frame off `file`, `None` at its end; the signature is still to be verified.
    /// After an error nothing was taken.
    pub fn take(file: &mut Bytes) -> Result<Option<SignedFrame>, FileError> {
        if file.is_empty() {
            return Ok(None);
        }
        let mut reader = Reader::new(file);
        if reader.array() != Ok(MAGIC) {
            return Err(FileError::Magic);
        }
        let seen = reader.u8().map_err(|_| FileError::Length)?;
        if seen != VERSION {
            return Err(FileError::Version { seen });
        }
        let (key_id, signature, length) = Self::frame(&mut reader).ok_or(FileError::Length)?;
        let rest = reader.rest();
        if rest.len() < length || length > STATE_BYTES_MAX {
            return Err(FileError::Length);
        }
        let body = file.slice_ref(&rest[..length]);
        file.advance(file.len() - rest.len() + length);
        Ok(Some(SignedFrame {
            key_id,
            signature,
            body,
        }))
    }

    fn frame(reader: &mut Reader<'_>) -> Option<([u8; 8], [u8; SIGNATURE_BYTES], usize)> {
        if reader.array() != Ok([0; 3]) {
            return None;
        }
        let key_id = reader.array().ok()?;
        let signature = reader.array().ok()?;
        Some((key_id, signature, usize::try_from(reader.u32().ok()?).ok()?))
    }
}
