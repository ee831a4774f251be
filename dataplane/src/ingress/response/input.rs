//! Bytes of an answer that were not taken yet, and what they parse to.

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::HeaderMap;
use http::{StatusCode, Version};

use super::fields::fields_of;
use super::{BadResponse, CHUNK_LINE_BYTES_MAX, FIELDS_MAX, HEAD_BYTES_MAX};

/// Bytes that were not taken yet.
#[derive(Default)]
pub struct Input {
    whole: Bytes,
    /// A head, chunk line or trailer section that came in pieces.
    carry: BytesMut,
    /// Where in `carry` no blank line was looked for yet.
    unsearched: usize,
}

/// A head as it came.
pub struct RawHead {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its version.
    pub version: Version,
}

impl Input {
    /// Takes bytes from the stream.
    pub fn push(&mut self, data: Bytes) {
        if self.carry.is_empty() && self.whole.is_empty() {
            self.whole = data;
            return;
        }
        if !self.whole.is_empty() {
            let input = std::mem::take(&mut self.whole);
            self.carry.extend_from_slice(&input);
        }
        self.carry.extend_from_slice(&data);
    }

    /// Everything at hand.
    pub fn rest(&mut self) -> Bytes {
        self.join();
        std::mem::take(&mut self.whole)
    }

    /// Makes `whole` hold every byte at hand.
    fn join(&mut self) {
        if !self.carry.is_empty() {
            let mut whole = std::mem::take(&mut self.carry);
            whole.extend_from_slice(&self.whole);
            self.whole = whole.freeze();
        }
    }

    /// Puts what could not be parsed yet aside, at most `max` bytes.
    fn keep(&mut self, what: &'static str, max: usize) -> Result<(), BadResponse> {
        if self.whole.len() > max {
            return Err(BadResponse::TooLarge { what, max });
        }
        let input = std::mem::take(&mut self.whole);
        self.carry = input
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        Ok(())
    }

    /// Whether the carried bytes may hold a whole section, so that a peer that
    /// sends single bytes does not make us parse from the start each time.
    fn blank_line_at_hand(&mut self) -> bool {
        let carry = &self.carry[..];
        let short = carry.len() <= 4;
        let fresh = &carry[self.unsearched.min(carry.len())..];
        let ends = |window: &[u8]| window.starts_with(b"\n\n") || window == b"\n\r\n";
        let found = short || fresh.windows(3).any(ends) || fresh.ends_with(b"\n\n");
        self.unsearched = if found { 0 } else { carry.len() - 2 };
        found
    }

    /// At most `left` bytes of a body.
    pub fn body(&mut self, left: u64) -> Option<Bytes> {
        self.join();
        if self.whole.is_empty() {
            return None;
        }
        let take =
            usize::try_from(left).map_or(self.whole.len(), |left| left.min(self.whole.len()));
        Some(self.whole.split_to(take))
    }

    /// A head, once it is whole.
    pub fn head(&mut self) -> Result<Option<RawHead>, BadResponse> {
        if !self.blank_line_at_hand() {
            if self.carry.len() > HEAD_BYTES_MAX {
                return Err(too_large_head());
            }
            return Ok(None);
        }
        self.join();
        let mut fields = [const { std::mem::MaybeUninit::uninit() }; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut []);
        let done = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut parsed,
            &self.whole,
            &mut fields,
        );
        match done {
            Ok(httparse::Status::Complete(length)) => {
                if length > HEAD_BYTES_MAX {
                    return Err(too_large_head());
                }
                let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
                let status = status.ok_or(BadResponse::Head(httparse::Error::Status))?;
                let version = match parsed.version {
                    Some(0) => Version::HTTP_10,
                    _ => Version::HTTP_11,
                };
                let headers = fields_of(&self.whole, parsed.headers)?;
                self.whole.advance(length);
                Ok(Some(RawHead {
                    status,
                    headers,
                    version,
                }))
            }
            Ok(httparse::Status::Partial) => {
                self.keep("the head size in bytes", HEAD_BYTES_MAX)?;
                Ok(None)
            }
            Err(httparse::Error::TooManyHeaders) => Err(BadResponse::TooLarge {
                what: "the number of fields",
                max: FIELDS_MAX,
            }),
            Err(why) => Err(BadResponse::Head(why)),
        }
    }

    /// The size that a chunk line announces.
    pub fn chunk_size(&mut self) -> Result<Option<u64>, BadResponse> {
        self.join();
        match httparse::parse_chunk_size(&self.whole) {
            Ok(httparse::Status::Complete((used, size))) => {
                if used > CHUNK_LINE_BYTES_MAX {
                    return Err(too_long_chunk_line());
                }
                self.whole.advance(used);
                Ok(Some(size))
            }
            Ok(httparse::Status::Partial) => {
                self.keep("a chunk line in bytes", CHUNK_LINE_BYTES_MAX)?;
                Ok(None)
            }
            Err(_) => Err(BadResponse::Chunk),
        }
    }

    /// Whether the line end after a chunk was there, and taken.
    pub fn take_line_end(&mut self) -> Result<bool, BadResponse> {
        self.join();
        match &self.whole[..] {
            [b'\r', b'\n', ..] => {
                self.whole.advance(2);
                Ok(true)
            }
            [] => Ok(false),
            [b'\r'] => {
                self.keep("a chunk line in bytes", CHUNK_LINE_BYTES_MAX)?;
                Ok(false)
            }
            _ => Err(BadResponse::Chunk),
        }
    }

    /// The trailer section, once it is whole.
    pub fn trailers(&mut self) -> Result<Option<HeaderMap>, BadResponse> {
        if !self.blank_line_at_hand() {
            if self.carry.len() > HEAD_BYTES_MAX {
                return Err(too_large_head());
            }
            return Ok(None);
        }
        self.join();
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        match httparse::parse_headers(&self.whole, &mut fields) {
            Ok(httparse::Status::Complete((used, fields))) => {
                let headers = fields_of(&self.whole, fields)?;
                self.whole.advance(used);
                Ok(Some(headers))
            }
            Ok(httparse::Status::Partial) => {
                self.keep("the trailer size in bytes", HEAD_BYTES_MAX)?;
                Ok(None)
            }
            Err(why) => Err(BadResponse::Head(why)),
        }
    }
}

fn too_large_head() -> BadResponse {
    BadResponse::TooLarge {
        what: "the head size in bytes",
        max: HEAD_BYTES_MAX,
    }
}

fn too_long_chunk_line() -> BadResponse {
    BadResponse::TooLarge {
        what: "a chunk line in bytes",
        max: CHUNK_LINE_BYTES_MAX,
    }
}
