//! The dial answer, written by the agent and read by the hub (P5.2).

use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

use super::{DialAnswer, DialCode, OpenError};
use crate::limits::DIAL_REASON_BYTES_MAX;
use crate::text;
use crate::wire::{self, BlockDecoder};

/// Collects a dial answer from pieces of any size.
#[derive(Default)]
pub struct DialAnswerDecoder(BlockDecoder);

impl DialAnswer {
    /// "Connected".
    pub fn connected() -> Self {
        DialAnswer {
            code: DialCode::Connected,
            reason: String::new(),
        }
    }

    /// The bytes of the answer; the reason is cut to 512 bytes.
    pub fn encode(&self) -> Bytes {
        let reason = text::clip(&self.reason, usize::from(DIAL_REASON_BYTES_MAX)).as_bytes();
        let mut out = Vec::with_capacity(wire::BLOCK_HEAD + reason.len());
        out.extend_from_slice(&[self.code as u8, 0]);
        // The clipped reason always fits its length field.
        let _ = wire::put_short_bytes(&mut out, reason);
        Bytes::from(out)
    }
}

impl DialAnswerDecoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the answer's bytes off the front of `input` and leaves what follows. A reason that is
    /// not UTF-8 is repaired; it only serves logs.
    pub fn push(&mut self, input: &mut Bytes) -> Result<Option<DialAnswer>, OpenError> {
        let max = DIAL_REASON_BYTES_MAX;
        let block = self
            .0
            .next(input, max)
            .map_err(|error| OpenError::TooLong {
                announced: error.announced,
                max,
            })?;
        let Some(block) = block else { return Ok(None) };
        if block.second != 0 {
            return Err(OpenError::Reserved(block.second));
        }
        let code = DialCode::from_u8(block.first).ok_or(OpenError::DialCode(block.first))?;
        let reason = String::from_utf8_lossy(&block.body).into_owned();
        Ok(Some(DialAnswer { code, reason }))
    }
}
