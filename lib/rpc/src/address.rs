//! Where the link is: `unix:/path` or `https://host:port`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Address of control's state link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket; the peer is known by its uid.
    Unix(PathBuf),
    /// TCP with mutual TLS.
    Tls {
        /// Name or address, as the certificate has to carry it.
        host: String,
        /// TCP port.
        port: u16,
    },
}

/// Why a text is no link address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{seen:?} is no link address: {why}; use unix:/absolute/path or https://host:port")]
pub struct AddressError {
    /// What was given.
    pub seen: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Which users may hold the other end of a Unix socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerCheck {
    /// Accepted beside the own effective uid.
    pub uid: Option<u32>,
}

impl Address {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err("the socket path is not absolute")
            };
        }
        let uri: http::Uri = text.parse().map_err(|_| "it is no URI")?;
        match (uri.scheme_str(), uri.host(), uri.port_u16()) {
            (Some("https"), Some(host), Some(port)) if uri.path() == "/" => {
                let host = host
                    .trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned();
                Ok(Self::Tls { host, port })
            }
            (Some("http"), ..) => Err("TCP needs mutual TLS, so plain http is refused"),
            (Some("https"), Some(_), None) => Err("the port is missing"),
            _ => Err("it is neither form"),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text).map_err(|why| AddressError {
            seen: text.to_owned(),
            why,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls { host, port } if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Tls { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

impl PeerCheck {
    /// Checks the user at the other end of `stream` and answers its uid.
    ///
    /// # Errors
    /// A sentence naming the uid seen and the uids wanted.
    pub fn check(self, stream: &tokio::net::UnixStream) -> Result<u32, String> {
        let own = rustix::process::geteuid().as_raw();
        let seen = match stream.peer_cred() {
            Ok(cred) => cred.uid(),
            Err(why) => return Err(format!("the peer's uid cannot be read: {why}")),
        };
        if seen == own || self.uid == Some(seen) {
            return Ok(seen);
        }
        let also = self.uid.map_or(String::new(), |uid| format!(" or {uid}"));
        Err(format!("the peer runs as uid {seen}, wanted {own}{also}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_written() {
        for text in [
            "unix:/run/culvert/state.sock",
            "https://hub.lan:8444",
            "https://[::1]:1",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!(
            "unix:///a".parse::<Address>().unwrap().to_string(),
            "unix:/a"
        );
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        for (text, why) in [
            ("unix:rel", "absolute"),
            ("http://a:1", "mutual TLS"),
            ("https://a", "port"),
            ("https://a:1/x", "neither"),
            ("", "URI"),
        ] {
            let said = text.parse::<Address>().unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
    }

    #[tokio::test]
    async fn the_own_user_passes_the_peer_check() {
        let (a, _b) = tokio::net::UnixStream::pair().unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(PeerCheck::default().check(&a), Ok(own));
    }
}
