//! A preface in pieces of any size.

use alloc::vec::Vec;

use super::preface::{Shape, check_begin};
use super::{PREFACE_HEAD_BYTES, Preface, PrefaceError};

/// Collects a preface. Memory grows with the bytes that came, not with the
/// length that they announce; what is wrong is told with the first wrong byte.
#[derive(Default)]
pub struct PrefaceReader {
    held: Vec<u8>,
    shape: Option<Shape>,
}

impl PrefaceReader {
    /// How many bytes may be read now without reading one behind the preface.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.whole() - self.held.len()
    }

    /// Takes what belongs to the preface off the front of `input`; `Some` once,
    /// when it is complete.
    ///
    /// # Errors
    /// What is wrong with the bytes so far. Nothing more may be fed then.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Preface>, PrefaceError> {
        loop {
            let (piece, rest) = input.split_at(self.wanted().min(input.len()));
            self.held.extend_from_slice(piece);
            *input = rest;
            match (self.shape, self.held.first_chunk()) {
                (Some(shape), Some(head)) if self.wanted() == 0 => {
                    let preface = shape.fill(head, &self.held[PREFACE_HEAD_BYTES..]);
                    self.held = Vec::new();
                    self.shape = None;
                    return Ok(preface);
                }
                (Some(_), _) => return Ok(None),
                (None, Some(head)) => self.shape = Some(Shape::of(head)?),
                (None, None) => return check_begin(&self.held).map(|()| None),
            }
        }
    }

    fn whole(&self) -> usize {
        PREFACE_HEAD_BYTES + self.shape.map_or(0, |shape| shape.rest_bytes())
    }
}
