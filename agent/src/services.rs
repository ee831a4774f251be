//! The services that routes and forwards of the hub may reach, as the operator named them.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_proto::channel::Form;
use culvert_proto::control::Grant;
use culvert_proto::open::{DialAnswer, DialCode};
use culvert_proto::update::{EVERY_SERVICE, ServiceName};
use ipnet::IpNet;
use tokio::net::TcpStream;

use crate::serve::answer::Failure;
use crate::target::{Target, TargetKind};
use crate::upstream::allow::AllowList;
use crate::upstream::dial::Dialer;
use crate::upstream::resolve::Resolve;

/// Services of one agent.
pub const SERVICES_MAX: usize = 64;

/// A service as it was named: `NAME=HOST:PORT`.
#[derive(Clone, Debug)]
pub struct NamedService {
    /// What the hub calls it.
    pub name: ServiceName,
    /// Its payload is TLS from end to end.
    pub sealed: bool,
    /// Where it is.
    pub target: Arc<Target>,
}

impl NamedService {
    /// Parses `NAME=HOST:PORT`.
    ///
    /// # Errors
    /// What is wrong and what would be right.
    pub fn parse(text: &str, sealed: bool) -> Result<Self, String> {
        let shape = "; write NAME=HOST:PORT, for example pg=10.0.0.5:5432";
        let Some((name, address)) = text.split_once('=') else {
            return Err(format!("names no address{shape}"));
        };
        let name = ServiceName::new(name).map_err(|why| format!("is called wrongly: {why}"))?;
        let target = Target::parse(address, Some(TargetKind::Http), true);
        match target {
            Ok(target) if !address.contains("://") => Ok(Self {
                name,
                sealed,
                target: Arc::new(target),
            }),
            _ => Err(format!("has no host and port in {address:?}{shape}")),
        }
    }
}

/// The services and the ways to them.
pub struct Services {
    by_name: BTreeMap<Arc<str>, Service>,
    /// Services that are not sealed may be served on channels without TLS.
    allow_plaintext: bool,
}

/// One service.
pub struct Service {
    name: Arc<str>,
    sealed: bool,
    dialer: Dialer,
}

impl Services {
    /// Ways to `named`, which may resolve to special addresses only where `allowed` lists them.
    #[must_use]
    pub fn new(
        named: &[NamedService],
        allow_plaintext: bool,
        allowed: &[IpNet],
        resolver: &Arc<dyn Resolve>,
    ) -> Self {
        let service = |one: &NamedService| {
            let target = one.target.clone();
            let allow = AllowList::new(&target, allowed.to_vec());
            let service = Service {
                name: one.name.shared(),
                sealed: one.sealed,
                dialer: Dialer::new(target, allow, resolver.clone(), None),
            };
            (one.name.shared(), service)
        };
        Self {
            by_name: named.iter().map(service).collect(),
            allow_plaintext,
        }
    }

    /// Their names, for HELLO.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(|name| &**name)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Whether any service may be served on a channel of `form`.
    #[must_use]
    pub fn use_form(&self, form: Form) -> bool {
        self.by_name.values().any(|one| self.allows(one, form))
    }

    /// The service that the hub asks for by `name`, if all three agree: this agent's own list, the
    /// hub's `grant`, and what the service's bytes would travel in. `form` is absent on a carrier.
    ///
    /// # Errors
    /// The answer that refuses.
    pub fn judge(
        &self,
        name: Option<&str>,
        grant: Option<&Grant>,
        form: Option<Form>,
    ) -> Result<&Service, DialAnswer> {
        let name = name.unwrap_or_default();
        let refusal = |code, reason| Err(DialAnswer { code, reason });
        let Some(service) = self.by_name.get(name) else {
            let text = format!(
                "the hub asks for service {name:?}; this agent serves {}; add --service {name}=HOST:PORT to it",
                self.listed()
            );
            return refusal(DialCode::UnknownTarget, text);
        };
        let granted = grant.is_some_and(|grant| {
            let mut targets = grant.targets.iter();
            targets.any(|one| **one == *name || **one == *EVERY_SERVICE)
        });
        if !granted {
            let text = format!(
                "the hub asks for service {name:?} and has not granted it to this session; add a route for it, then ask again"
            );
            return refusal(DialCode::NotAllowed, text);
        }
        if form.is_some_and(|form| !self.allows(service, form)) {
            let text = format!(
                "the hub asks for service {name:?} on a channel without TLS and it is not sealed; use --sealed-service if its payload is TLS, or --allow-plaintext-data-channels on both sides if the network is trusted"
            );
            return refusal(DialCode::NotAllowed, text);
        }
        Ok(service)
    }

    fn allows(&self, service: &Service, form: Form) -> bool {
        form == Form::Tls || service.sealed || self.allow_plaintext
    }

    fn listed(&self) -> String {
        match self.by_name.is_empty() {
            true => "none".to_owned(),
            false => self.names().collect::<Vec<_>>().join(", "),
        }
    }

    /// Whether what a client sent first may go to `service` on a channel of `form`: what is sealed
    /// begins with a TLS handshake.
    ///
    /// # Errors
    /// The answer that refuses.
    pub fn check_first(
        &self,
        service: &Service,
        form: Option<Form>,
        first: &[u8],
    ) -> Result<(), DialAnswer> {
        const HANDSHAKE: u8 = 0x16;
        let plain = form == Some(Form::Plain) && !self.allow_plaintext;
        match first.first() {
            Some(byte) if plain && *byte != HANDSHAKE => Err(DialAnswer {
                code: DialCode::NotAllowed,
                reason: format!(
                    "service {:?} is sealed and the client's first byte is {byte:#04x}, no TLS handshake; let the client speak TLS, or use --service",
                    &*service.name
                ),
            }),
            _ => Ok(()),
        }
    }
}

impl Service {
    /// What the hub calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connects within `limit`.
    ///
    /// # Errors
    /// What was seen of the last address tried.
    pub async fn dial(&self, limit: std::time::Duration) -> Result<TcpStream, Failure> {
        self.dialer.dial_plain(limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::resolve::SystemResolver;
    use culvert_proto::id::Epoch;

    fn services(allow_plaintext: bool) -> Services {
        let named = [
            ("pg=127.0.0.1:5432", false),
            ("vault=vault.internal:8200", true),
        ];
        let named = named.map(|(text, sealed)| NamedService::parse(text, sealed).unwrap());
        let resolver: Arc<dyn Resolve> = Arc::new(SystemResolver);
        Services::new(&named, allow_plaintext, &[], &resolver)
    }

    fn granted(names: &[&str]) -> Grant {
        Grant {
            epoch: Epoch(1),
            targets: names.iter().map(|name| Arc::from(*name)).collect(),
        }
    }

    #[test]
    fn names_and_addresses_are_checked() {
        let good = NamedService::parse("a.b-c_1=[::1]:80", true).unwrap();
        assert_eq!((good.name.as_str(), good.target.port), ("a.b-c_1", 80));
        for bad in [
            "pg",
            "=a:1",
            "PG=a:1",
            "pg=a",
            "pg=a:0",
            "pg=",
            "pg=http://a:1",
            "-pg=a:1",
        ] {
            let why = NamedService::parse(bad, false).unwrap_err();
            assert!(
                why.contains("NAME=HOST:PORT") || why.contains("lower-case"),
                "{bad}: {why}"
            );
        }
    }

    #[test]
    fn all_three_have_to_agree() {
        let services = services(false);
        let code = |name, grant: &Grant, form| {
            let judged = services.judge(name, Some(grant), form);
            judged.map_or_else(|answer| answer.code, |_| DialCode::Connected)
        };
        let all = granted(&["pg", "vault"]);
        let (pg, vault) = (Some("pg"), Some("vault"));
        assert_eq!(code(pg, &all, None), DialCode::Connected);
        assert_eq!(code(pg, &granted(&["*"]), None), DialCode::Connected);
        assert_eq!(code(pg, &all, Some(Form::Tls)), DialCode::Connected);
        assert_eq!(code(vault, &all, Some(Form::Plain)), DialCode::Connected);
        assert_eq!(code(pg, &all, Some(Form::Plain)), DialCode::NotAllowed);
        assert_eq!(code(pg, &granted(&["vault"]), None), DialCode::NotAllowed);
        assert_eq!(code(Some("ssh"), &all, None), DialCode::UnknownTarget);
        assert_eq!(code(None, &all, None), DialCode::UnknownTarget);
        assert_eq!(
            code(Some("*"), &granted(&["*"]), None),
            DialCode::UnknownTarget
        );
        let before = services.judge(pg, None, None).err().unwrap();
        assert_eq!(before.code, DialCode::NotAllowed);
    }

    #[test]
    fn plaintext_is_the_operators_choice() {
        let trusted = services(true);
        let all = granted(&["*"]);
        assert!(
            trusted
                .judge(Some("pg"), Some(&all), Some(Form::Plain))
                .is_ok()
        );
        assert!(services(false).use_form(Form::Plain), "vault is sealed");
        let strict = services(false);
        let vault = strict
            .judge(Some("vault"), Some(&all), Some(Form::Plain))
            .unwrap();
        let first = |bytes: &[u8], form| strict.check_first(vault, form, bytes).is_ok();
        assert!(first(b"\x16\x03\x01", Some(Form::Plain)));
        assert!(first(b"", Some(Form::Plain)));
        assert!(!first(b"GET / ", Some(Form::Plain)));
        assert!(
            first(b"GET / ", Some(Form::Tls)),
            "nobody on the way reads it"
        );
        assert!(first(b"GET / ", None));
    }
}
