//! What leads a client's TCP connection to a service, and who may ask for one.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::codec::{DecodeError, Fields, Writer, push};
use crate::limits::GRANTS_PER_TOKEN_MAX;
use crate::token::{Digest, TokenEntry};
use crate::wire::Reader;

/// Longest name of a service, in bytes.
pub const SERVICE_NAME_BYTES_MAX: usize = 63;
/// Longest server name, in bytes (RFC 1035, 2.3.4).
pub const SNI_BYTES_MAX: usize = 253;
/// A personal token with this grant reaches every service of its cluster.
pub const EVERY_SERVICE: &str = "*";

/// The name of a service of a cluster: lower-case letters, digits and inner `-`, `_`, `.`, 1 to 63
/// characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(Arc<str>);

/// A server name of the TLS that a route serves: `db.example.com`, or `*.example.com` for exactly
/// one label in place of the star. Compared in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SniPattern(Arc<str>);

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No service may be called so.
    #[error(
        "service name {seen:?}; use 1 to {SERVICE_NAME_BYTES_MAX} lower-case letters, digits and \
         inner '-', '_' or '.'"
    )]
    Service {
        /// The text seen.
        seen: String,
    },
    /// No server name and no pattern for one.
    #[error("server name {seen:?}; use a host name such as db.example.com or *.example.com")]
    Sni {
        /// The text seen.
        seen: String,
    },
}

/// One way to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The agent's name for the service.
    pub service: ServiceName,
    /// Who is led there.
    pub kind: RouteKind,
}

/// Who is led to a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// Everyone who connects to this address of the data plane, `host:port`.
    Tcp {
        /// Where it listens.
        addr: Arc<str>,
    },
    /// Everyone whose TLS asks for this server name. The TLS is not opened.
    Sealed {
        /// The name.
        sni: SniPattern,
        /// An address of its own, `host:port`; `None` = the public listener.
        addr: Option<Arc<str>>,
    },
}

/// A person's right to reach services of a cluster with `culvert-agent forward`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersonalToken {
    /// SHA-256 of the token.
    pub digest: Digest,
    /// Public id.
    pub id: Arc<str>,
    /// Whose it is, for logs and audit.
    pub principal: Arc<str>,
    /// End of its life, wall clock ms; `None` = no end.
    pub not_after_unix_ms: Option<u64>,
    /// Services, or [`EVERY_SERVICE`].
    pub services: Vec<Arc<str>>,
}

impl ServiceName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError::Service`].
    pub fn new(name: &str) -> Result<Self, NameError> {
        let end = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let inner = |byte: u8| end(byte) || b"-_.".contains(&byte);
        let bytes = name.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        let good = bytes.len() <= SERVICE_NAME_BYTES_MAX
            && ends.into_iter().all(|byte| byte.is_some_and(|it| end(*it)))
            && bytes.iter().all(|byte| inner(*byte));
        match good {
            true => Ok(Self(Arc::from(name))),
            false => Err(NameError::Service { seen: name.into() }),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, shared.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl SniPattern {
    /// Checks a name or pattern; upper case becomes lower case.
    ///
    /// # Errors
    /// [`NameError::Sni`].
    pub fn new(pattern: &str) -> Result<Self, NameError> {
        let lower = pattern.to_ascii_lowercase();
        let host = lower.strip_prefix("*.").unwrap_or(&lower);
        let starred = host.len() < lower.len();
        let labels = host.split('.').count();
        let good = lower.len() <= SNI_BYTES_MAX
            && host.split('.').all(is_label)
            && (!starred || labels >= 2);
        match good {
            true => Ok(Self(Arc::from(lower))),
            false => Err(NameError::Sni {
                seen: pattern.into(),
            }),
        }
    }

    /// The text, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for several names.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with("*.")
    }

    /// Whether a client that asks for `name` is meant. A star is one label.
    pub fn matches(&self, name: &str) -> bool {
        let Some(suffix) = self.0.strip_prefix('*') else {
            return self.0.eq_ignore_ascii_case(name);
        };
        let Some((label, _)) = name.split_once('.') else {
            return false;
        };
        is_label(&label.to_ascii_lowercase()) && name[label.len()..].eq_ignore_ascii_case(suffix)
    }
}

fn is_label(label: &str) -> bool {
    let end = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = label.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    bytes.len() <= 63
        && ends.into_iter().all(|byte| byte.is_some_and(|it| end(*it)))
        && bytes.iter().all(|byte| end(*byte) || b"-_".contains(byte))
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for SniPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SniPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl PersonalToken {
    /// Whether it reaches `service`.
    pub fn reaches(&self, service: &str) -> bool {
        let mut services = self.services.iter();
        services.any(|granted| &**granted == EVERY_SERVICE || &**granted == service)
    }
}

impl super::ClusterState {
    /// The personal tokens as entries of a [`crate::token::TokenIndex`] for this cluster alone.
    pub fn personal_token_entries(&self) -> impl Iterator<Item = TokenEntry> {
        self.personal_tokens.iter().map(|token| TokenEntry {
            digest: token.digest,
            cluster: self.id.clone(),
            token_id: token.id.clone(),
            not_after_unix_ms: token.not_after_unix_ms,
        })
    }
}

mod field {
    pub(super) const SERVICE: u8 = 1;
    pub(super) const TCP: u8 = 2;
    pub(super) const SNI: u8 = 3;
    pub(super) const ADDR: u8 = 4;
}

mod token_field {
    pub(super) const DIGEST: u8 = 1;
    pub(super) const ID: u8 = 2;
    pub(super) const PRINCIPAL: u8 = 3;
    pub(super) const NOT_AFTER: u8 = 4;
    pub(super) const SERVICE: u8 = 5;
}

pub(super) fn write_route(value: &Route) -> Vec<u8> {
    let mut out = Writer::nested();
    out.text(field::SERVICE, value.service.as_str());
    match &value.kind {
        RouteKind::Tcp { addr } => out.text(field::TCP, addr),
        RouteKind::Sealed { sni, addr } => {
            out.text(field::SNI, sni.as_str());
            if let Some(addr) = addr {
                out.text(field::ADDR, addr);
            }
        }
    }
    out.finish()
}

pub(super) fn read_route(value: Reader<'_>) -> Result<Route, DecodeError> {
    let mut fields = Fields::nested("route", field::ADDR, value);
    let (mut service, mut tcp, mut sni, mut own_addr) = (None, None, None, None);
    while let Some((field, value)) = fields.next(&[])? {
        match field {
            field::SERVICE => service = ServiceName::new(fields.str(field, value)?).ok(),
            field::TCP => tcp = Some(fields.text(field, value)?),
            field::SNI => {
                let text = fields.str(field, value)?;
                let read = SniPattern::new(text).map_err(|_| fields.error(field))?;
                fields.check(field, read.as_str() == text)?;
                sni = Some(read);
            }
            field::ADDR => own_addr = Some(fields.text(field, value)?),
            _ => {}
        }
    }
    let service = service.ok_or(fields.error(field::SERVICE))?;
    let kind = match (tcp, sni, own_addr) {
        (Some(addr), None, None) => RouteKind::Tcp { addr },
        (None, Some(sni), addr) => RouteKind::Sealed { sni, addr },
        _ => return Err(fields.error(field::TCP)),
    };
    Ok(Route { service, kind })
}

pub(super) fn write_token(value: &PersonalToken) -> Vec<u8> {
    let mut out = Writer::nested();
    out.bytes(token_field::DIGEST, &value.digest.0);
    out.text(token_field::ID, &value.id);
    out.text(token_field::PRINCIPAL, &value.principal);
    let not_after = value.not_after_unix_ms.map_or(0, |at| at.max(1));
    out.u64(token_field::NOT_AFTER, not_after);
    for service in &value.services {
        out.text(token_field::SERVICE, service);
    }
    out.finish()
}

pub(super) fn read_token(value: Reader<'_>) -> Result<PersonalToken, DecodeError> {
    let mut fields = Fields::nested("personal token", token_field::SERVICE, value);
    let (mut digest, mut id, mut principal) = (None, Arc::from(""), Arc::from(""));
    let (mut not_after_unix_ms, mut services) = (None, Vec::new());
    while let Some((field, value)) = fields.next(&[token_field::SERVICE])? {
        match field {
            token_field::DIGEST => digest = Some(Digest(fields.exact(field, value)?)),
            token_field::ID => id = fields.text(field, value)?,
            token_field::PRINCIPAL => principal = fields.text(field, value)?,
            token_field::NOT_AFTER => not_after_unix_ms = Some(fields.u64(field, value)?),
            token_field::SERVICE => {
                let service = fields.text(field, value)?;
                push(&mut services, service, "services", GRANTS_PER_TOKEN_MAX)?;
            }
            _ => {}
        }
    }
    let digest = digest.ok_or(fields.error(token_field::DIGEST))?;
    Ok(PersonalToken {
        digest,
        id,
        principal,
        not_after_unix_ms,
        services,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services() {
        for good in ["a", "pg", "pg-1", "vault.eu", "a_b", &"x".repeat(63)] {
            assert_eq!(ServiceName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a b", "*", "é", &"x".repeat(64)] {
            assert!(ServiceName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_star_is_exactly_one_label() {
        let star = SniPattern::new("*.Example.com").unwrap();
        assert_eq!(star.as_str(), "*.example.com");
        for name in ["a.example.com", "A.EXAMPLE.COM", "a_b-c.example.com"] {
            assert!(star.matches(name), "{name}");
        }
        for name in [
            "example.com",
            ".example.com",
            "a.b.example.com",
            "aexample.com",
            "*.example.com",
            "a.example.com.",
            "",
        ] {
            assert!(!star.matches(name), "{name}");
        }
        let exact = SniPattern::new("db.example.com").unwrap();
        assert!(exact.matches("DB.example.com") && !exact.matches("x.db.example.com"));
    }

    #[test]
    fn what_is_no_server_name() {
        for bad in [
            "", "*", "*.", "*.com", "a..b", "-a.b", "a.b-", "a b", "a.*.b", "x.",
        ] {
            assert!(SniPattern::new(bad).is_err(), "{bad:?}");
        }
        assert!(SniPattern::new(&"a.".repeat(127)).is_err());
        assert!(SniPattern::new("localhost").is_ok());
    }
}
