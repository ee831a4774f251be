//! Settings as people write them: durations, sizes, addresses.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

/// `30s`, `500ms`, `5m`, `24h` or `0`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| expected(text, "30s, 500ms, 5m, 24h or 0"))?;
    let millis = match &text[digits.len()..] {
        "" if number == 0 => Some(0),
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| expected(text, "30s, 500ms, 5m, 24h or 0"))
}

/// `1GiB`, `256MiB`, `64KiB` or bytes.
#[cfg(any(feature = "hub", test))]
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| expected(text, "1GiB, 256MiB, 64KiB or bytes"))?;
    let unit = match &text[digits.len()..] {
        "" | "B" => Some(1),
        "KiB" | "Ki" => Some(1 << 10),
        "MiB" | "Mi" => Some(1 << 20),
        "GiB" | "Gi" => Some(1 << 30),
        _ => None,
    };
    unit.and_then(|unit| number.checked_mul(unit))
        .ok_or_else(|| expected(text, "1GiB, 256MiB, 64KiB or bytes"))
}

/// `:8443` (all addresses, both families), `127.0.0.1:0`, `[::1]:80` or `name:port`.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let whole = if text.starts_with(':') {
        format!("[::]{text}")
    } else {
        text.to_owned()
    };
    if let Ok(addr) = whole.parse() {
        return Ok(addr);
    }
    let found = whole
        .to_socket_addrs()
        .map_err(|why| format!("`{text}` is no address: {why}"))?;
    found
        .into_iter()
        .next()
        .ok_or_else(|| format!("`{text}` has no address"))
}

/// A whole number in `range`.
pub fn number(text: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, String> {
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(expected(
            text,
            &format!("a number from {} to {}", range.start(), range.end()),
        )),
    }
}

fn expected(text: &str, what: &str) -> String {
    format!("`{text}` is not {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for bad in [
            "",
            "30",
            "s",
            "-1s",
            "1.5s",
            "99999999999999999999h",
            "18446744073709551615h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(bytes("1GiB"), Ok(1 << 30));
        assert_eq!(bytes("512Mi"), Ok(512 << 20));
        for bad in ["", "GiB", "1GB", "99999999999GiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_alone_means_every_address() {
        assert_eq!(address(":8443").unwrap().to_string(), "[::]:8443");
        assert_eq!(address("127.0.0.1:1").unwrap().to_string(), "127.0.0.1:1");
        assert!(address("8443").is_err());
        assert!(address(":99999").is_err());
    }
}
