//! Times as the API writes them.

/// RFC 3339 in UTC.
pub(super) fn rfc3339(unix_ms: u64) -> String {
    let ms = i64::try_from(unix_ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms)
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}

/// The time that an RFC 3339 text names, milliseconds since 1970.
pub(super) fn unix_ms(text: &str) -> Result<u64, String> {
    let time: jiff::Timestamp = text
        .parse()
        .map_err(|_| format!("is {text:?}; wanted RFC 3339, for example 2026-01-31T12:00:00Z"))?;
    u64::try_from(time.as_millisecond()).map_err(|_| format!("is {text:?}, before 1970"))
}

/// RFC 3339 in UTC; 0 means not known.
pub(super) fn known(unix_ms: u64) -> Option<String> {
    (unix_ms > 0).then(|| rfc3339(unix_ms))
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_utc() {
        assert_eq!(super::rfc3339(1_763_683_200_000), "2025-11-21T00:00:00Z");
        assert_eq!(
            super::unix_ms("2025-11-21T01:00:00+01:00"),
            Ok(1_763_683_200_000)
        );
        assert!(
            super::unix_ms("yesterday").is_err() && super::unix_ms("1969-01-01T00:00:00Z").is_err()
        );
        assert_eq!(super::known(0), None);
        assert!(super::rfc3339(u64::MAX).starts_with("9999"));
    }
}
