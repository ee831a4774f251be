//! Times as the API writes them.

/// RFC 3339 in UTC.
pub(super) fn rfc3339(unix_ms: u64) -> String {
    let ms = i64::try_from(unix_ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms)
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
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
        assert_eq!(super::known(0), None);
        assert!(super::rfc3339(u64::MAX).starts_with("9999"));
    }
}
