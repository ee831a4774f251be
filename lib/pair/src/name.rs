//! Names of pairs and addresses of relays, as people write them.

/// Longest name of a pair.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest `host:port` of a relay: a DNS name has 253 characters at most.
const RELAY_BYTES_MAX: usize = 260;

/// Why a text is no name of a pair, or no address of a relay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No name of a pair.
    #[error(
        "{seen:?} is no name of a pair: 1 to {NAME_BYTES_MAX} lower-case letters, digits and inner hyphens"
    )]
    Name {
        /// The text seen.
        seen: String,
    },
    /// No address of a relay.
    #[error(
        "{seen:?} is no relay: write host:port, such as relay.example.com:443 or [2001:db8::1]:443"
    )]
    Relay {
        /// The text seen.
        seen: String,
    },
}

/// Checks the name of a pair.
///
/// # Errors
/// When it is none.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let inner = bytes.iter().all(|byte| plain(byte) || *byte == b'-');
    let ends = bytes.first().is_some_and(plain) && bytes.last().is_some_and(plain);
    if inner && ends && bytes.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let seen = name.chars().take(NAME_BYTES_MAX + 1).collect();
    Err(NameError::Name { seen })
}

/// Splits the `host:port` of a relay; an IPv6 address stands in brackets and loses them.
///
/// # Errors
/// When it is none.
pub fn check_relay(relay: &str) -> Result<(&str, u16), NameError> {
    let refuse = || NameError::Relay {
        seen: relay.chars().take(RELAY_BYTES_MAX).collect(),
    };
    if relay.len() > RELAY_BYTES_MAX {
        return Err(refuse());
    }
    let (host, port) = relay.rsplit_once(':').ok_or_else(refuse)?;
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port: u16 = port.parse().map_err(|_| refuse())?;
    let host = match host.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.strip_suffix(']').ok_or_else(refuse)?;
            inner.parse::<std::net::Ipv6Addr>().map_err(|_| refuse())?;
            inner
        }
        None => host,
    };
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let bracketed = relay.starts_with('[');
    if !digits || port == 0 || host.is_empty() || !(bracketed || host.bytes().all(named)) {
        return Err(refuse());
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_a_label_and_nothing_else() {
        for good in ["a", "7", "prod-eu", &"x".repeat(63)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a.b",
            "../x",
            "ä",
            "a b",
            &"x".repeat(64),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_relay_is_a_host_and_a_port() {
        assert_eq!(check_relay("relay:443"), Ok(("relay", 443)));
        assert_eq!(check_relay("10.0.0.1:8443"), Ok(("10.0.0.1", 8443)));
        assert_eq!(check_relay("[::1]:443"), Ok(("::1", 443)));
        for bad in [
            "",
            "relay",
            "relay:",
            ":443",
            "relay:0",
            "relay:65536",
            "relay:+1",
            "::1:443",
            "[::1:443",
            "[relay]:443",
            "https://relay:443",
            "relay:443/x",
            "re lay:443",
            &format!("{}:443", "x".repeat(300)),
        ] {
            assert!(check_relay(bad).is_err(), "{bad}");
        }
    }
}
