//! The one service this agent serves, as the operator named it.

use std::net::IpAddr;

use http::HeaderValue;
use http::uri::Authority;

use crate::ceiling::Ceiling;

/// How the target is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// An HTTP service: gets the hub's `X-Forwarded-*`.
    Http,
    /// A Kubernetes API server: gets `Impersonate-*`, no `X-Forwarded-*`, and
    /// errors as `Status` objects.
    Kube,
}

/// A target, parsed.
#[derive(Clone, Debug)]
pub struct Target {
    /// Kind of service.
    pub kind: TargetKind,
    /// TLS towards the target.
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `Host` of every request; the port stands in it unless it is the scheme's own.
    pub authority: HeaderValue,
    /// The most that is impersonated towards it.
    pub ceiling: Ceiling,
}

/// The name by which the hub means the target without naming its address.
pub const DEFAULT_NAME: &str = "default";

impl Target {
    /// Parses `host:port` or `http(s)://host[:port]`.
    ///
    /// `kind` decides where the text does not: a URL is [`TargetKind::Http`],
    /// `host:port` is [`TargetKind::Kube`]. `plain` turns TLS off.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what would be right.
    pub fn parse(text: &str, kind: Option<TargetKind>, plain: bool) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("target {text:?} {why}; give host:port or http(s)://host[:port]");
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest.strip_suffix('/').unwrap_or(rest)),
            None => (None, text),
        };
        let tls = match scheme {
            None => !plain,
            Some("http") => false,
            Some("https") if plain => return Err(wrong("is https but --plain-target is set")),
            Some("https") => true,
            Some(_) => return Err(wrong("has an unknown scheme")),
        };
        let authority: Authority = rest.parse().map_err(|_| wrong("is not a host and port"))?;
        if rest.contains('@') {
            return Err(wrong("carries a user name"));
        }
        let own_port = if tls { 443 } else { 80 };
        let port = match (authority.port_u16(), scheme) {
            (Some(0), _) => return Err(wrong("has port 0")),
            (Some(port), _) => port,
            (None, Some(_)) if authority.port().is_none() => own_port,
            (None, _) => return Err(wrong("has no port")),
        };
        let host = authority.host();
        if host.is_empty() {
            return Err(wrong("has no host"));
        }
        let shown = if port == own_port {
            host.to_owned()
        } else {
            format!("{host}:{port}")
        };
        Ok(Self {
            ceiling: Ceiling::default(),
            kind: kind.unwrap_or(match scheme {
                Some(_) => TargetKind::Http,
                None => TargetKind::Kube,
            }),
            tls,
            host: host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port,
            authority: HeaderValue::try_from(shown).map_err(|_| wrong("is not a host and port"))?,
        })
    }

    /// The address, when the operator gave one in place of a name.
    #[must_use]
    pub fn literal(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// `host:port` with brackets around an IPv6 address.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether the hub's `name` means this target: nothing, the default name, or
    /// the very address the operator configured (contract D-30).
    #[must_use]
    pub fn answers_to(&self, name: &str) -> bool {
        if name.is_empty() || name == DEFAULT_NAME {
            return true;
        }
        let plain = !self.tls && !name.contains("://");
        Self::parse(name, Some(self.kind), plain).is_ok_and(|named| {
            named.tls == self.tls
                && named.port == self.port
                && named.host.eq_ignore_ascii_case(&self.host)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_schemes_and_ports() {
        let kube = Target::parse("kubernetes.default.svc:443", None, false).unwrap();
        assert_eq!(
            (kube.kind, kube.tls, kube.port),
            (TargetKind::Kube, true, 443)
        );
        assert_eq!(kube.authority, "kubernetes.default.svc");
        let http = Target::parse("http://localhost:3000/", None, false).unwrap();
        assert_eq!(
            (http.kind, http.tls, http.port),
            (TargetKind::Http, false, 3000)
        );
        assert_eq!(http.authority, "localhost:3000");
        let six = Target::parse("https://[::1]", None, false).unwrap();
        assert_eq!(
            (six.host.as_str(), six.port, six.address().as_str()),
            ("::1", 443, "[::1]:443")
        );
        assert_eq!(six.authority, "[::1]");
        let plain = Target::parse("127.0.0.1:6443", None, true).unwrap();
        assert!(!plain.tls);
        assert_eq!(plain.literal(), Some("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn refuses_what_is_no_target() {
        for bad in [
            "",
            "host",
            "host:0",
            "host:99999",
            "ftp://a:1",
            "http://u@a:1",
            "a b:1",
            "http://a/path",
            ":80",
        ] {
            let why = Target::parse(bad, None, false).unwrap_err();
            assert!(why.contains("give host:port"), "{bad}: {why}");
        }
        assert!(Target::parse("https://a", None, true).is_err());
    }

    #[test]
    fn answers_to_its_own_names_only() {
        let target = Target::parse("127.0.0.1:6443", None, false).unwrap();
        for name in ["", "default", "127.0.0.1:6443", "https://127.0.0.1:6443/"] {
            assert!(target.answers_to(name), "{name}");
        }
        for name in [
            "kubernetes.default.svc:443",
            "127.0.0.1",
            "127.0.0.1:64430",
            "http://127.0.0.1:6443",
            "other",
        ] {
            assert!(!target.answers_to(name), "{name}");
        }
    }
}
