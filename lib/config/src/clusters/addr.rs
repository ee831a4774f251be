//! Addresses in files and in the API.

use std::net::SocketAddr;

/// Longest host name in bytes (RFC 1035).
const HOST_BYTES_MAX: usize = 253;

/// What keeps `addr` from being `host:port`, where host is a name or an IP address.
#[must_use]
pub fn host_port_problem(addr: &str) -> Option<String> {
    let wrong = || Some(format!("is {addr:?}; wanted host:port"));
    let Some((host, port)) = addr.rsplit_once(':') else {
        return wrong();
    };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = bare.unwrap_or(host);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    let is_host = !host.is_empty() && host.len() <= HOST_BYTES_MAX && host.bytes().all(plain);
    if is_host && port.parse::<u16>().is_ok_and(|port| port > 0) {
        return None;
    }
    wrong()
}

/// The address that a data plane listens on: an IP address and a port from 1 to
/// 65,535. A name is none: it could mean another address on every data plane.
///
/// # Errors
/// A sentence that follows the name of the field.
pub fn listen_addr(text: &str) -> Result<SocketAddr, String> {
    let parsed = text
        .parse()
        .ok()
        .filter(|addr: &SocketAddr| addr.port() > 0);
    parsed.ok_or_else(|| {
        format!("is {text:?}; wanted IP:PORT of the data plane, for example 127.0.0.1:15432")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_host_and_port() {
        for right in [
            "a:1",
            "10.0.0.1:443",
            "[::1]:6443",
            "kubernetes.default.svc:443",
        ] {
            assert_eq!(host_port_problem(right), None, "{right}");
        }
        for wrong in ["", "a", "a:", ":1", "a:0", "a:65536", "http://a:1", "a b:1"] {
            assert!(host_port_problem(wrong).is_some(), "{wrong}");
        }
    }

    #[test]
    fn listeners_are_addresses_and_ports() {
        for right in ["127.0.0.1:1", "0.0.0.0:65535", "[::1]:5432"] {
            assert_eq!(listen_addr(right).unwrap().to_string(), right);
        }
        for wrong in [
            "",
            "localhost:1",
            ":1",
            "127.0.0.1",
            "127.0.0.1:0",
            "::1:5",
            "1.2.3.4:65536",
        ] {
            let why = listen_addr(wrong).unwrap_err();
            assert!(why.contains("IP:PORT"), "{why}");
        }
    }
}
