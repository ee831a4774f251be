//! The answer of an agent, read from its stream: head, framing, body, trailers.
//!
//! Pure: bytes in, steps out. `httparse` reads heads and chunk sizes; what is
//! decided here is framing (RFC 9112, section 6.3), strictly, because a stream
//! carries exactly one answer and anything odd can only be an error or an
//! attack. Body bytes are slices of what came in: nothing is copied.

mod fields;
mod input;

use bytes::Bytes;
use http::StatusCode;
use http::header::HeaderMap;

use fields::{chunked, content_length};
use input::{Input, RawHead};

/// Longest response head and trailer section in bytes (contract, section 16).
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most fields in a head.
pub const FIELDS_MAX: usize = 128;
/// Longest field value in bytes.
pub const FIELD_BYTES_MAX: usize = 16 * 1024;
/// Most informational answers before the final one.
pub const INFORMATIONAL_MAX: u8 = 8;
/// Longest chunk-size line with its extensions in bytes.
pub const CHUNK_LINE_BYTES_MAX: usize = 1024;

/// Why an answer cannot be passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadResponse {
    /// The head does not parse.
    #[error("the response head does not parse: {0}")]
    Head(httparse::Error),
    /// A limit of this module was reached.
    #[error("the response exceeds {what}: more than {max}")]
    TooLarge {
        /// What was too large.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// Framing that two readers could understand differently.
    #[error("the response framing is ambiguous: {0}")]
    Framing(&'static str),
    /// A chunk size or its line end is wrong.
    #[error("the chunked body is malformed")]
    Chunk,
    /// More than [`INFORMATIONAL_MAX`] answers of class 1xx.
    #[error("more than {INFORMATIONAL_MAX} informational answers")]
    Informational,
    /// The stream ended inside the answer.
    #[error("the stream ended inside the response {0}")]
    Truncated(&'static str),
    /// `101` without having been asked.
    #[error("101 without a request to upgrade")]
    UnaskedUpgrade,
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    /// Its status; never 1xx but 101.
    pub status: StatusCode,
    /// All fields as they came.
    pub headers: HeaderMap,
    /// The body's length, when it is known.
    pub length: Option<u64>,
}

/// What the bytes so far amount to.
#[derive(Debug)]
pub enum Step {
    /// Nothing more without more bytes.
    NeedMore,
    /// The final head. After a 101 no step follows: take the [`rest`](ResponseReader::rest).
    Head(Head),
    /// A part of the body.
    Data(Bytes),
    /// The trailer section; the end follows.
    Trailers(HeaderMap),
    /// The answer is complete.
    End,
}

enum State {
    Head { informational: u8 },
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    UntilEof,
    Raw,
    Done,
}

/// Reads one answer.
pub struct ResponseReader {
    state: State,
    input: Input,
    to_head_request: bool,
    upgrade_asked: bool,
}

impl ResponseReader {
    /// A reader for the answer to one request.
    pub fn new(to_head_request: bool, upgrade_asked: bool) -> Self {
        Self {
            state: State::Head { informational: 0 },
            input: Input::default(),
            to_head_request,
            upgrade_asked,
        }
    }

    /// Takes bytes from the stream. Call [`next`](Self::next) until it needs more first.
    pub fn push(&mut self, data: Bytes) {
        self.input.push(data);
    }

    /// The next step.
    ///
    /// # Errors
    /// [`BadResponse`]: the answer cannot be passed on from here.
    pub fn next(&mut self) -> Result<Step, BadResponse> {
        loop {
            match self.state {
                State::Head { informational } => {
                    let Some(head) = self.input.head()? else {
                        return Ok(Step::NeedMore);
                    };
                    if head.status.is_informational()
                        && head.status != StatusCode::SWITCHING_PROTOCOLS
                    {
                        if informational == INFORMATIONAL_MAX {
                            return Err(BadResponse::Informational);
                        }
                        self.state = State::Head {
                            informational: informational + 1,
                        };
                        continue;
                    }
                    return self.final_head(head);
                }
                State::Length(left) => {
                    let Some(data) = self.input.body(left) else {
                        return Ok(Step::NeedMore);
                    };
                    self.state = match left - data.len() as u64 {
                        0 => State::Done,
                        left => State::Length(left),
                    };
                    return Ok(Step::Data(data));
                }
                State::ChunkSize => match self.input.chunk_size()? {
                    None => return Ok(Step::NeedMore),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::ChunkData(size),
                },
                State::ChunkData(left) => {
                    let Some(data) = self.input.body(left) else {
                        return Ok(Step::NeedMore);
                    };
                    self.state = match left - data.len() as u64 {
                        0 => State::ChunkEnd,
                        left => State::ChunkData(left),
                    };
                    return Ok(Step::Data(data));
                }
                State::ChunkEnd => {
                    if !self.input.take_line_end()? {
                        return Ok(Step::NeedMore);
                    }
                    self.state = State::ChunkSize;
                }
                State::Trailers => {
                    let Some(trailers) = self.input.trailers()? else {
                        return Ok(Step::NeedMore);
                    };
                    self.state = State::Done;
                    if !trailers.is_empty() {
                        return Ok(Step::Trailers(trailers));
                    }
                }
                State::UntilEof | State::Raw => {
                    return Ok(match self.input.rest() {
                        rest if rest.is_empty() => Step::NeedMore,
                        rest => Step::Data(rest),
                    });
                }
                State::Done => return Ok(Step::End),
            }
        }
    }

    /// The stream ended cleanly (FIN); with every byte already taken by `next`.
    ///
    /// # Errors
    /// [`BadResponse::Truncated`] unless the answer was complete.
    pub fn end(&mut self) -> Result<(), BadResponse> {
        match self.state {
            State::Done | State::UntilEof | State::Raw => {
                self.state = State::Done;
                Ok(())
            }
            State::Head { .. } => Err(BadResponse::Truncated("head")),
            State::Trailers => Err(BadResponse::Truncated("trailers")),
            _ => Err(BadResponse::Truncated("body")),
        }
    }

    /// Whether the answer is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Bytes read beyond the head of a 101.
    pub fn rest(mut self) -> Bytes {
        self.input.rest()
    }

    fn final_head(&mut self, head: RawHead) -> Result<Step, BadResponse> {
        let RawHead {
            status,
            headers,
            version,
        } = head;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            if !self.upgrade_asked {
                return Err(BadResponse::UnaskedUpgrade);
            }
            self.state = State::Raw;
            let length = None;
            return Ok(Step::Head(Head {
                status,
                headers,
                length,
            }));
        }
        let chunked = chunked(&headers, version)?;
        let declared = content_length(&headers)?;
        if chunked && declared.is_some() {
            return Err(BadResponse::Framing(
                "Content-Length beside Transfer-Encoding",
            ));
        }
        let bodiless = self.to_head_request
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = if bodiless || !chunked { declared } else { None };
        self.state = match (bodiless, chunked, declared) {
            (true, _, _) => State::Done,
            (_, true, _) => State::ChunkSize,
            (_, _, Some(0)) => State::Done,
            (_, _, Some(length)) => State::Length(length),
            _ => State::UntilEof,
        };
        Ok(Step::Head(Head {
            status,
            headers,
            length,
        }))
    }
}

#[cfg(test)]
mod tests;
