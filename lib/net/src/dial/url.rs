//! The address of a hub as an operator writes it.

use std::fmt;
use std::str::FromStr;

/// Largest weight of a hub among its neighbours.
pub const WEIGHT_MAX: u16 = 1_000;

/// Between an address and its weight.
const WEIGHT_MARK: &str = ";weight=";

/// `wss://`, `https://`, `ws://` or `http://`, a host, perhaps a port and a path, perhaps
/// `;weight=<1 to 1000>` behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubUrl {
    tls: bool,
    host: String,
    port: u16,
    path: String,
    weight: Option<u16>,
}

/// The text is no hub address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no hub address: {problem}; write wss://host[:port][/path][;weight=n]")]
pub struct UrlError {
    text: String,
    problem: &'static str,
}

impl HubUrl {
    /// Whether TLS is spoken. Plain URLs need the operator's consent (`--allow-insecure-server`).
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Host name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port, 443 or 80 when none was written.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query, beginning with `/`; `/agent` when none was written.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its share of the agents among neighbours that carry one too, 1 to [`WEIGHT_MAX`].
    #[must_use]
    pub fn weight(&self) -> Option<u16> {
        self.weight
    }

    /// `host:port` with brackets around an IPv6 address, for CONNECT.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The value of a `Host` header: without the port where it is the scheme's own.
    #[must_use]
    pub fn host_header(&self) -> String {
        let authority = self.authority();
        let default = if self.tls { ":443" } else { ":80" };
        authority
            .strip_suffix(default)
            .map_or(authority.clone(), str::to_owned)
    }

    /// The same host and port as an `http` or `https` URI, for proxy rules.
    pub(super) fn origin(&self) -> http::Uri {
        let scheme = if self.tls { "https" } else { "http" };
        http::Uri::builder()
            .scheme(scheme)
            .authority(self.authority())
            .path_and_query("/")
            .build()
            .expect("host and port were checked when the URL was parsed")
    }
}

impl FromStr for HubUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<HubUrl, UrlError> {
        let fail = |problem| UrlError {
            text: redact(text),
            problem,
        };
        let (address, weight) = match text.rsplit_once(WEIGHT_MARK) {
            None => (text, None),
            Some((address, digits)) => {
                let weight = digits.parse().ok().filter(|w| (1..=WEIGHT_MAX).contains(w));
                let problem = "its weight is no number from 1 to 1000";
                (address, Some(weight.ok_or_else(|| fail(problem))?))
            }
        };
        let uri: http::Uri = address.parse().map_err(|_| fail("not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("wss" | "https") => true,
            Some("ws" | "http") => false,
            Some(_) => return Err(fail("the scheme is none of wss, https, ws, http")),
            None => return Err(fail("the scheme is missing")),
        };
        let authority = uri.authority().ok_or_else(|| fail("the host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(fail(
                "it holds a user name; credentials belong into a token file",
            ));
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        if host.is_empty() {
            return Err(fail("the host is missing"));
        }
        let port = match (authority.port_u16(), tls) {
            (Some(0), _) => return Err(fail("port 0 cannot be dialled")),
            (Some(port), _) => port,
            (None, true) => 443,
            (None, false) => 80,
        };
        let path = match uri.path_and_query().map(http::uri::PathAndQuery::as_str) {
            None | Some("" | "/") => "/agent".to_owned(),
            Some(path) => path.to_owned(),
        };
        Ok(HubUrl {
            tls,
            host: host.to_ascii_lowercase(),
            port,
            path,
            weight,
        })
    }
}

impl fmt::Display for HubUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        // The query may carry what should not be in a log.
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.host_header())
    }
}

/// Cuts user information out of a text that may hold a password.
pub(super) fn redact(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme + 3 => {
            format!("{}://***@{}", &text[..scheme], &text[at + 1..])
        }
        (_, Some(at)) => format!("***@{}", &text[at + 1..]),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_an_address() {
        let url: HubUrl = "wss://Hub.Example.org".parse().unwrap();
        assert_eq!(
            (url.host(), url.port(), url.path()),
            ("hub.example.org", 443, "/agent")
        );
        assert_eq!(
            (url.host_header().as_str(), url.is_tls()),
            ("hub.example.org", true)
        );
        let url: HubUrl = "http://[::1]:8443/connect?x=1".parse().unwrap();
        assert_eq!(
            (url.host(), url.port(), url.path()),
            ("::1", 8443, "/connect?x=1")
        );
        assert_eq!(url.authority(), "[::1]:8443");
        assert_eq!(url.to_string(), "ws://[::1]:8443/connect");
        assert_eq!(url.origin().to_string(), "http://[::1]:8443/");
        assert_eq!(url.weight(), None);
        let url: HubUrl = "wss://hub.example/agent;weight=30".parse().unwrap();
        assert_eq!((url.path(), url.weight()), ("/agent", Some(30)));
        let url: HubUrl = "wss://hub.example;weight=1000".parse().unwrap();
        assert_eq!((url.host(), url.weight()), ("hub.example", Some(1_000)));
    }

    #[test]
    fn what_is_no_address() {
        for bad in [
            "",
            "hub",
            "ftp://hub/",
            "wss://",
            "wss://u:secret@hub/",
            "wss://hub:0/",
            "wss://hub;weight=0",
            "wss://hub;weight=1001",
            "wss://hub;weight=",
        ] {
            let error = bad.parse::<HubUrl>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
