//! Fields of an answer, and the two that frame its body.

use bytes::Bytes;
use http::Version;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};

use super::{BadResponse, FIELD_BYTES_MAX};

/// Fields as shared slices of the input: names are interned or copied, values
/// are not.
pub fn fields_of(input: &Bytes, fields: &[httparse::Header<'_>]) -> Result<HeaderMap, BadResponse> {
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

/// Whether the body is framed in chunks.
pub fn chunked(headers: &HeaderMap, version: Version) -> Result<bool, BadResponse> {
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

/// The body's length, where it is told.
pub fn content_length(headers: &HeaderMap) -> Result<Option<u64>, BadResponse> {
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
