//! Printable forms of bytes: hexadecimal, base64url without padding, fixed-width base62; CRC-32.

use alloc::string::String;
use alloc::vec::Vec;

const HEX: &[u8; 16] = b"0123456789abcdef";
const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push(char::from(HEX[usize::from(byte >> 4)]));
        out.push(char::from(HEX[usize::from(byte & 15)]));
    }
    out
}

pub(crate) fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in out.iter_mut().zip(pairs) {
        *byte = (nibble(*high)? << 4) | nibble(*low)?;
    }
    Some(out)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

pub(crate) fn base64url(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .fold(0u32, |word, byte| (word << 8) | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            out.push(char::from(
                BASE64URL[(word >> (18 - 6 * place)) as usize & 63],
            ));
        }
    }
    out
}

/// `None` for a foreign character, an impossible length, or unused bits that are not zero.
pub(crate) fn unbase64url(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.chunks(4) {
        let mut word = 0u32;
        for digit in chunk {
            let value = BASE64URL.iter().position(|known| known == digit)?;
            word = (word << 6) | u32::try_from(value).ok()?;
        }
        word <<= 6 * (4 - chunk.len());
        let [zero, bytes @ ..] = word.to_be_bytes();
        debug_assert_eq!(zero, 0);
        let count = chunk.len().checked_sub(1).filter(|count| *count > 0)?;
        let (kept, unused) = bytes.split_at(count);
        if unused.iter().any(|byte| *byte != 0) {
            return None;
        }
        out.extend_from_slice(kept);
    }
    Some(out)
}

/// The number `bytes` (big-endian) in exactly `width` base62 digits; `width` must be enough.
pub(crate) fn base62(bytes: &[u8], width: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = alloc::vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0u16;
        for byte in &mut number {
            let value = (remainder << 8) | u16::from(*byte);
            *byte = u8::try_from(value / 62).unwrap_or(u8::MAX);
            remainder = value % 62;
        }
        *digit = BASE62[usize::from(remainder)];
    }
    zeroize::Zeroize::zeroize(&mut number);
    digits.into_iter().map(char::from).collect()
}

pub(crate) fn is_base62(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// CRC-32 (IEEE 802.3), against typing and copying mistakes only.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// The longest prefix of `text` of at most `bytes_max` bytes that ends between characters.
pub(crate) fn clip(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(hex(&[0, 0xab, 0xff]), "00abff");
        assert_eq!(base64url(b"\xfb\xff\xfe"), "-__-");
        assert_eq!(base64url(b"ab"), "YWI");
        assert_eq!(base62(&[61], 2), "0z");
        assert_eq!(base62(&[1, 0], 3), "048");
        assert_eq!(base62(&[0xff; 32], 43).len(), 43);
        assert_eq!(clip("aé", 2), "a");
    }

    #[test]
    fn rejects_what_it_would_not_write() {
        assert_eq!(unbase64url(b"YWJ"), None, "unused bits set");
        assert_eq!(unbase64url(b"Y"), None);
        assert_eq!(unbase64url(b"YW=="), None);
        assert_eq!(unhex::<1>(b"0g"), None);
        assert_eq!(unhex::<1>(b"000"), None);
    }

    proptest! {
        #[test]
        fn base64url_round_trip(bytes: Vec<u8>) {
            prop_assert_eq!(unbase64url(base64url(&bytes).as_bytes()), Some(bytes));
        }

        #[test]
        fn unbase64url_never_panics(bytes: Vec<u8>) {
            if let Some(decoded) = unbase64url(&bytes) {
                prop_assert_eq!(base64url(&decoded).into_bytes(), bytes);
            }
        }

        #[test]
        fn hex_round_trip(bytes: [u8; 20]) {
            prop_assert_eq!(unhex::<20>(hex(&bytes).as_bytes()), Some(bytes));
        }

        #[test]
        fn base62_keeps_order_and_width(a: [u8; 8], b: [u8; 8]) {
            let (left, right) = (base62(&a, 11), base62(&b, 11));
            prop_assert_eq!(left.len(), 11);
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
        }
    }
}
