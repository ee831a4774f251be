//! The fastest honest HTTP/1.1 service: fixed heads, bodies of known bytes.
//!
//! `/k/{id}` answers 1 KiB that begins with the 16 bytes of `id`; `/big/{bytes}` answers that many
//! bytes of [`pattern`]. It is driven by the generator's own loop, so that on one CPU it never
//! waits for the scheduler.

use std::sync::LazyLock;

/// Bytes of a small answer.
pub const SMALL_BYTES: usize = 1024;
/// Bytes of the id at the start of a small answer.
pub const ID_BYTES: usize = 16;
/// A prime: no buffer size hides a lost, doubled or moved piece.
const PERIOD_BYTES: usize = 262_147;

/// Random bytes, one period and enough behind it that any 64 KiB are one slice.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = crate::statistics::Random::new(7);
    let period: Vec<u8> = (0..PERIOD_BYTES)
        .map(|_| random.next().to_be_bytes()[0])
        .collect();
    period
        .iter()
        .chain(&period[..PIECE_BYTES])
        .copied()
        .collect()
});

/// Longest slice that [`pattern`] gives.
pub const PIECE_BYTES: usize = 64 * 1024;

/// What stands at `position` of a big body, at most `length` or [`PIECE_BYTES`] bytes of it.
pub fn pattern(position: u64, length: usize) -> &'static [u8] {
    let period = PERIOD_BYTES as u64;
    let start = usize::try_from(position % period).unwrap_or(0);
    &PATTERN[start..start + length.min(PIECE_BYTES)]
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// 1 KiB that begins with this id.
    Small([u8; ID_BYTES]),
    /// So many bytes of the pattern.
    Big(u64),
    /// Neither: 404.
    Unknown,
}

/// Takes one request head off the front of `inbox`; `None` when none is there yet.
pub fn take_request(inbox: &mut Vec<u8>) -> Option<Asked> {
    let end = inbox.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let target = inbox[..end]
        .split(|byte| *byte == b' ')
        .nth(1)
        .unwrap_or_default();
    let asked = if let Some(id) = target.strip_prefix(b"/k/") {
        id.try_into().map_or(Asked::Unknown, Asked::Small)
    } else if let Some(bytes) = target.strip_prefix(b"/big/") {
        std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.parse().ok())
            .map_or(Asked::Unknown, Asked::Big)
    } else {
        Asked::Unknown
    };
    inbox.drain(..end);
    Some(asked)
}

/// The head of the answer, with the whole body where it is small.
pub fn answer(asked: Asked, out: &mut Vec<u8>) {
    const SMALL_HEAD: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n";
    match asked {
        Asked::Small(id) => {
            out.extend_from_slice(SMALL_HEAD);
            out.extend_from_slice(&id);
            out.extend_from_slice(pattern(0, SMALL_BYTES - ID_BYTES));
        }
        Asked::Big(bytes) => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
            out.extend_from_slice(head.as_bytes());
        }
        Asked::Unknown => {
            out.extend_from_slice(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_one_by_one() {
        let mut inbox =
            b"GET /k/0123456789abcdef HTTP/1.1\r\nHost: a\r\n\r\nGET /big/9 HTTP/1.1\r\n".to_vec();
        assert_eq!(
            take_request(&mut inbox),
            Some(Asked::Small(*b"0123456789abcdef"))
        );
        assert_eq!(take_request(&mut inbox), None);
        inbox.extend_from_slice(b"\r\n");
        assert_eq!(take_request(&mut inbox), Some(Asked::Big(9)));
        assert!(inbox.is_empty());
    }

    #[test]
    fn a_small_answer_is_1_kib_behind_its_head() {
        let mut out = Vec::new();
        answer(Asked::Small(*b"0123456789abcdef"), &mut out);
        let head = out.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(out.len() - head, SMALL_BYTES);
        assert_eq!(&out[head..head + ID_BYTES], b"0123456789abcdef");
    }

    #[test]
    fn the_pattern_depends_on_the_place() {
        assert_eq!(pattern(5, 100), &pattern(0, 105)[5..]);
        assert_ne!(pattern(0, 64), pattern(65_536, 64));
        assert_eq!(pattern(3, 9), pattern(3 + PERIOD_BYTES as u64, 9));
    }
}
