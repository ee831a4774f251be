//! The answer of an agent, read from its stream: head, framing, body, trailers.
//!
//! Pure: bytes in, steps out. `httparse` reads heads and chunk sizes; what is
//! decided here is framing (RFC 9112, section 6.3), strictly, because a stream
//! carries exactly one answer and anything odd can only be an error or an
//! attack. Body bytes are slices of what came in: nothing is copied.

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{StatusCode, Version};

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
    input: Bytes,
    /// A head, chunk line or trailer section that came in pieces.
    carry: BytesMut,
    /// Where in `carry` no blank line was looked for yet.
    unsearched: usize,
    to_head_request: bool,
    upgrade_asked: bool,
}

impl ResponseReader {
    /// A reader for the answer to one request.
    pub fn new(to_head_request: bool, upgrade_asked: bool) -> Self {
        Self {
            state: State::Head { informational: 0 },
            input: Bytes::new(),
            carry: BytesMut::new(),
            unsearched: 0,
            to_head_request,
            upgrade_asked,
        }
    }

    /// Takes bytes from the stream. Call [`next`](Self::next) until it needs more first.
    pub fn push(&mut self, data: Bytes) {
        if self.carry.is_empty() && self.input.is_empty() {
            self.input = data;
            return;
        }
        if !self.input.is_empty() {
            let input = std::mem::take(&mut self.input);
            self.carry.extend_from_slice(&input);
        }
        self.carry.extend_from_slice(&data);
    }

    /// The next step.
    ///
    /// # Errors
    /// [`BadResponse`]: the answer cannot be passed on from here.
    pub fn next(&mut self) -> Result<Step, BadResponse> {
        loop {
            match self.state {
                State::Head { informational } => {
                    let Some(head) = self.head()? else {
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
                    let Some(data) = self.body(left) else {
                        return Ok(Step::NeedMore);
                    };
                    self.state = match left - data.len() as u64 {
                        0 => State::Done,
                        left => State::Length(left),
                    };
                    return Ok(Step::Data(data));
                }
                State::ChunkSize => match self.chunk_size()? {
                    None => return Ok(Step::NeedMore),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::ChunkData(size),
                },
                State::ChunkData(left) => {
                    let Some(data) = self.body(left) else {
                        return Ok(Step::NeedMore);
                    };
                    self.state = match left - data.len() as u64 {
                        0 => State::ChunkEnd,
                        left => State::ChunkData(left),
                    };
                    return Ok(Step::Data(data));
                }
                State::ChunkEnd => {
                    if !self.take_line_end()? {
                        return Ok(Step::NeedMore);
                    }
                    self.state = State::ChunkSize;
                }
                State::Trailers => {
                    let Some(trailers) = self.trailers()? else {
                        return Ok(Step::NeedMore);
                    };
                    self.state = State::Done;
                    if !trailers.is_empty() {
                        return Ok(Step::Trailers(trailers));
                    }
                }
                State::UntilEof | State::Raw => {
                    self.join();
                    if self.input.is_empty() {
                        return Ok(Step::NeedMore);
                    }
                    return Ok(Step::Data(std::mem::take(&mut self.input)));
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
        self.join();
        self.input
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

    /// Makes `input` hold every byte at hand.
    fn join(&mut self) {
        if !self.carry.is_empty() {
            let mut whole = std::mem::take(&mut self.carry);
            whole.extend_from_slice(&self.input);
            self.input = whole.freeze();
        }
    }

    /// Puts what could not be parsed yet aside, at most `max` bytes.
    fn keep(&mut self, what: &'static str, max: usize) -> Result<(), BadResponse> {
        if self.input.len() > max {
            return Err(BadResponse::TooLarge { what, max });
        }
        let input = std::mem::take(&mut self.input);
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

    fn body(&mut self, left: u64) -> Option<Bytes> {
        self.join();
        if self.input.is_empty() {
            return None;
        }
        let take =
            usize::try_from(left).map_or(self.input.len(), |left| left.min(self.input.len()));
        Some(self.input.split_to(take))
    }

    fn head(&mut self) -> Result<Option<RawHead>, BadResponse> {
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
            &self.input,
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
                let headers = fields_of(&self.input, parsed.headers)?;
                self.input.advance(length);
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

    fn chunk_size(&mut self) -> Result<Option<u64>, BadResponse> {
        self.join();
        match httparse::parse_chunk_size(&self.input) {
            Ok(httparse::Status::Complete((used, size))) => {
                if used > CHUNK_LINE_BYTES_MAX {
                    return Err(too_long_chunk_line());
                }
                self.input.advance(used);
                Ok(Some(size))
            }
            Ok(httparse::Status::Partial) => {
                self.keep("a chunk line in bytes", CHUNK_LINE_BYTES_MAX)?;
                Ok(None)
            }
            Err(_) => Err(BadResponse::Chunk),
        }
    }

    fn take_line_end(&mut self) -> Result<bool, BadResponse> {
        self.join();
        match &self.input[..] {
            [b'\r', b'\n', ..] => {
                self.input.advance(2);
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

    fn trailers(&mut self) -> Result<Option<HeaderMap>, BadResponse> {
        if !self.blank_line_at_hand() {
            if self.carry.len() > HEAD_BYTES_MAX {
                return Err(too_large_head());
            }
            return Ok(None);
        }
        self.join();
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        match httparse::parse_headers(&self.input, &mut fields) {
            Ok(httparse::Status::Complete((used, fields))) => {
                let headers = fields_of(&self.input, fields)?;
                self.input.advance(used);
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

struct RawHead {
    status: StatusCode,
    headers: HeaderMap,
    version: Version,
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

/// Fields as shared slices of the input: names are interned or copied, values
/// are not.
fn fields_of(input: &Bytes, fields: &[httparse::Header<'_>]) -> Result<HeaderMap, BadResponse> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        if field.value.len() > FIELD_BYTES_MAX {
            return Err(BadResponse::TooLarge {
                what: "a field size in bytes",
                max: FIELD_BYTES_MAX,
            });
        }
        let bad = |_| BadResponse::Head(httparse::Error::HeaderName);
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(bad)?;
        let value = if field.value.is_empty() {
            HeaderValue::from_static("")
        } else {
            HeaderValue::from_maybe_shared(input.slice_ref(field.value))
                .map_err(|_| BadResponse::Head(httparse::Error::HeaderValue))?
        };
        headers.append(name, value);
    }
    Ok(headers)
}

fn chunked(headers: &HeaderMap, version: Version) -> Result<bool, BadResponse> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else {
        return Ok(false);
    };
    if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(BadResponse::Framing(
            "Transfer-Encoding other than one `chunked`",
        ));
    }
    if version == Version::HTTP_10 {
        return Err(BadResponse::Framing("Transfer-Encoding in HTTP/1.0"));
    }
    Ok(true)
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, BadResponse> {
    let mut found = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let digits = value.as_bytes();
        let odd = digits.is_empty() || !digits.iter().all(u8::is_ascii_digit);
        let length = value.to_str().ok().and_then(|text| text.parse().ok());
        let (false, Some(length)) = (odd, length) else {
            return Err(BadResponse::Framing("a Content-Length that is no number"));
        };
        if found.is_some_and(|before: u64| before != length) {
            return Err(BadResponse::Framing("two Content-Lengths that differ"));
        }
        found = Some(length);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `wire` in pieces of `step` bytes and returns head, body, trailers.
    fn read(
        wire: &[u8],
        step: usize,
        to_head: bool,
        upgrade: bool,
    ) -> Result<(Head, Vec<u8>, Option<HeaderMap>), BadResponse> {
        let mut reader = ResponseReader::new(to_head, upgrade);
        let (mut head, mut body, mut trailers) = (None, Vec::new(), None);
        let mut pieces = wire.chunks(step.max(1));
        loop {
            match reader.next()? {
                Step::NeedMore => match pieces.next() {
                    Some(piece) => reader.push(Bytes::copy_from_slice(piece)),
                    None => {
                        reader.end()?;
                        break;
                    }
                },
                Step::Head(found) => head = Some(found),
                Step::Data(data) => body.extend_from_slice(&data),
                Step::Trailers(found) => trailers = Some(found),
                Step::End => break,
            }
        }
        Ok((head.expect("a head before the end"), body, trailers))
    }

    const CHUNKED: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\n\
        Transfer-Encoding: chunked\r\nX-A: 1\r\n\r\n5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\nx-sum: 9\r\n\r\n";

    #[test]
    fn chunked_with_trailers_reads_the_same_at_every_split() {
        for step in 1..CHUNKED.len() {
            let (head, body, trailers) = read(CHUNKED, step, false, false).unwrap();
            assert_eq!(head.status, 200, "pieces of {step}");
            assert_eq!(head.length, None);
            assert_eq!(body, b"hello!", "pieces of {step}");
            assert_eq!(trailers.unwrap()["x-sum"], "9");
        }
    }

    #[test]
    fn every_early_end_of_a_chunked_answer_is_an_error() {
        for cut in 1..CHUNKED.len() {
            let got = read(&CHUNKED[..cut], 7, false, false);
            assert!(
                matches!(got, Err(BadResponse::Truncated(_))),
                "cut at {cut}: {:?}",
                got.map(|(head, ..)| head.status)
            );
        }
    }

    #[test]
    fn content_length_is_exact() {
        let wire = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloTRAILING";
        let (head, body, _) = read(wire, 9, false, false).unwrap();
        assert_eq!((head.length, &body[..]), (Some(5), &b"hello"[..]));
        let short = &wire[..wire.len() - 9];
        assert_eq!(
            read(short, 9, false, false).unwrap_err(),
            BadResponse::Truncated("body")
        );
    }

    #[test]
    fn answers_without_a_body_end_with_the_head() {
        for (status, to_head) in [
            ("204 No Content", false),
            ("304 Not Modified", false),
            ("200 OK", true),
        ] {
            let wire = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n");
            let (head, body, _) = read(wire.as_bytes(), 100, to_head, false).unwrap();
            assert_eq!((head.length, body.len()), (Some(5), 0), "{status}");
        }
    }

    #[test]
    fn without_a_length_the_clean_end_of_the_stream_ends_the_body() {
        let (head, body, _) = read(b"HTTP/1.0 200 OK\r\n\r\nall of it", 4, false, false).unwrap();
        assert_eq!((head.length, &body[..]), (None, &b"all of it"[..]));
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for fields in [
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: identity",
            "Content-Length: 3\r\nContent-Length: 4",
            "Content-Length: +3",
            "Content-Length: 3, 3",
            "Content-Length: ",
            "Content-Length: 99999999999999999999999",
        ] {
            let wire = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nabc");
            let got = read(wire.as_bytes(), 1000, false, false);
            assert!(matches!(got, Err(BadResponse::Framing(_))), "{fields}");
        }
        let wire = b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        assert!(read(wire, 1000, false, false).is_err());
        let wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n";
        assert_eq!(
            read(wire, 1000, false, false).unwrap_err(),
            BadResponse::Chunk
        );
        let wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n";
        assert_eq!(
            read(wire, 1000, false, false).unwrap_err(),
            BadResponse::Chunk
        );
    }

    #[test]
    fn upgrades_only_when_asked_and_the_rest_is_raw() {
        let wire = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nraw";
        assert_eq!(
            read(wire, 1000, false, false).unwrap_err(),
            BadResponse::UnaskedUpgrade
        );
        let mut reader = ResponseReader::new(false, true);
        reader.push(Bytes::from_static(wire));
        assert!(matches!(reader.next().unwrap(), Step::Head(head) if head.status == 101));
        assert_eq!(reader.rest(), "raw");
    }

    #[test]
    fn limits_hold_at_their_edge() {
        let informational = |n: usize| "HTTP/1.1 100 Continue\r\n\r\n".repeat(n);
        let last = "HTTP/1.1 204 No Content\r\n\r\n";
        let max = usize::from(INFORMATIONAL_MAX);
        assert!(read((informational(max) + last).as_bytes(), 50, false, false).is_ok());
        assert_eq!(
            read((informational(max + 1) + last).as_bytes(), 50, false, false).unwrap_err(),
            BadResponse::Informational
        );
        let fields = |n: usize| format!("HTTP/1.1 204 No\r\n{}\r\n", "a: b\r\n".repeat(n));
        assert!(read(fields(FIELDS_MAX).as_bytes(), 9999, false, false).is_ok());
        assert!(read(fields(FIELDS_MAX + 1).as_bytes(), 9999, false, false).is_err());
        let field = |n: usize| format!("HTTP/1.1 204 No\r\na: {}\r\n\r\n", "b".repeat(n));
        assert!(read(field(FIELD_BYTES_MAX).as_bytes(), 9999, false, false).is_ok());
        assert!(read(field(FIELD_BYTES_MAX + 1).as_bytes(), 9999, false, false).is_err());
        let endless = "HTTP/1.1 200 OK\r\na: ".to_owned() + &"b".repeat(HEAD_BYTES_MAX);
        assert!(matches!(
            read(endless.as_bytes(), 1000, false, false).unwrap_err(),
            BadResponse::TooLarge { .. }
        ));
    }

    proptest! {
        #[test]
        fn never_panics_and_never_invents_bytes(
            wire in proptest::collection::vec(any::<u8>(), 0..400),
            step in 1usize..50,
            prefix in 0usize..4,
        ) {
            let starts: [&[u8]; 4] = [
                b"",
                b"HTTP/1.1 200 OK\r\n\r\n",
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n",
            ];
            let whole = [starts[prefix], &wire].concat();
            if let Ok((_, body, _)) = read(&whole, step, false, true) {
                prop_assert!(body.len() <= whole.len());
            }
        }
    }
}
