//! Settings that concern the hub: where, who we are, whom to trust, the way out.

use std::sync::Arc;

use culvert_net::dial::{HubUrl, ProxyConfig, UrlError};
use culvert_net::tls::{ClientTls, ClientTlsOptions, Roots, SpkiPin};
use culvert_proto::id::ClusterId;
use culvert_proto::join::JoinString;
use culvert_proto::token::TokenText;

use super::enrol::is_bootstrap;
use super::reader::Reader;
use super::{Credential, HUBS_MAX, Wish};
use crate::credential::Kept;

impl Reader {
    pub(super) fn join(&mut self) -> Option<JoinString> {
        let verb = match self.layers.matches.subcommand() {
            Some(("join", verb)) => verb.get_one::<String>("string"),
            _ => None,
        };
        let (text, from) = match (verb, self.layers.get("join")) {
            (Some(text), _) => (text.clone(), "join".to_owned()),
            (None, Some(value)) => (value.text.clone(), value.from.clone()),
            (None, None) => return None,
        };
        self.join_asked = true;
        match JoinString::decode(&text) {
            Ok(join) => Some(join),
            Err(why) => {
                self.layers
                    .problems
                    .push(format!("{from}: not a join string: {why}"));
                None
            }
        }
    }

    pub(super) fn hubs(&mut self, join: Option<&JoinString>, insecure: bool) -> Vec<HubUrl> {
        let (from, texts) = match (self.layers.get("server"), join) {
            (Some(value), _) => (
                value.from.clone(),
                value
                    .text
                    .split(',')
                    .map(|text| text.trim().to_owned())
                    .collect(),
            ),
            (None, Some(join)) => ("the join string".to_owned(), join.hubs.clone()),
            (None, None) if self.join_asked => return Vec::new(),
            (None, None) => {
                self.layers.problems.push(
                    "no hub address: set --server or CULVERT_HUB, for example wss://hub.example.com/agent".to_owned(),
                );
                return Vec::new();
            }
        };
        if texts.len() > HUBS_MAX {
            self.layers
                .problems
                .push(format!("{from}: more than {HUBS_MAX} hub addresses"));
        }
        let mut hubs = Vec::new();
        for text in texts {
            match hub_url(&text, insecure) {
                Ok(url) => hubs.push(url),
                Err(why) => self.layers.problems.push(format!("{from}: {why}")),
            }
        }
        hubs
    }

    pub(super) fn cluster(&mut self, join: Option<&JoinString>) -> Option<ClusterId> {
        let joined = join.map(|join| join.cluster.clone());
        let Some(value) = self.layers.get("cluster").cloned() else {
            return joined;
        };
        match (ClusterId::new(&value.text), joined) {
            (Err(why), _) => self.problem(&value, format_args!("is no cluster id: {why}")),
            (Ok(named), Some(joined)) if named != joined => {
                self.problem(
                    &value,
                    format_args!("but the join string is for {joined}; keep one"),
                );
            }
            (Ok(named), _) => return Some(named),
        }
        None
    }

    pub(super) fn hub_tls(&mut self, join: Option<&JoinString>) -> ClientTlsOptions {
        let pin = self.layers.get("hub-pin").cloned();
        let ca = self.path("server-ca-cert");
        if let (Some(pin), Some(_)) = (&pin, &ca) {
            self.problem(pin, "and --server-ca-cert are both set; keep one");
        }
        let roots = match (pin, ca, join.and_then(|join| join.spki_pin)) {
            (Some(pin), _, _) => match pin.text.parse::<SpkiPin>() {
                Ok(parsed) => Roots::Pin(parsed),
                Err(why) => {
                    self.problem(&pin, why);
                    Roots::System
                }
            },
            (None, Some(ca), _) => Roots::File(ca),
            (None, None, Some(pin)) => Roots::Pin(SpkiPin(pin)),
            // A proxy that opens the TLS signs with the CA it is known by.
            (None, None, None) => self
                .path("proxy-ca")
                .map_or(Roots::System, Roots::SystemAnd),
        };
        let identity = match (self.path("client-cert"), self.path("client-key")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => {
                let both = "--client-cert and --client-key go together; set both or none";
                self.layers.problems.push(both.to_owned());
                None
            }
        };
        let options = ClientTlsOptions {
            roots,
            identity,
            alpn: vec![b"http/1.1".to_vec()],
            ..ClientTlsOptions::default()
        };
        self.try_tls("TLS to the hub", &options);
        options
    }

    pub(super) fn credential(
        &mut self,
        join: Option<JoinString>,
        has_certificate: bool,
        insecure: bool,
    ) -> Credential {
        let parse = match insecure {
            true => TokenText::for_development,
            false => TokenText::new,
        };
        let state_dir = self.path("state-dir");
        let kept = match &state_dir {
            None => None,
            Some(dir) => match Kept::check(dir) {
                Ok(kept) => kept,
                Err(why) => {
                    self.layers
                        .problems
                        .push(format!("state directory {}: {why}", dir.display()));
                    None
                }
            },
        };
        let given = self.layers.get("token").cloned();
        // A bootstrap token is no credential of sessions.
        let given = given.filter(|value| !is_bootstrap(&value.text));
        let token = given.as_ref().and_then(|value| match parse(&value.text) {
            Ok(token) => Some(token),
            Err(why) => {
                self.secret_problem(value, format_args!("not a token: {why}"));
                None
            }
        });
        if given.is_some() && join.is_some() {
            self.layers
                .problems
                .push("a token and a join string are both set; keep one".to_owned());
        }
        let connects = self.layers.matches.subcommand_matches("connect").is_some();
        let asked = given.is_some() || connects || (self.join_asked && !has_certificate);
        if !asked && kept.is_none() && !has_certificate {
            self.layers.problems.push(
                "no credential: set --token-file, CULVERT_TOKEN or --join, give --client-cert, or ask for one: culvert-agent connect"
                    .to_owned(),
            );
        }
        let joined = join.is_some();
        if let (Some(join), None) = (&join, &kept)
            && join.is_expired(unix_s())
        {
            self.layers.problems.push(
                "the join string is expired; make a new one with `culvert agent command`"
                    .to_owned(),
            );
        }
        Credential {
            token: token.or(join.map(|join| join.token)),
            joined,
            state_dir,
        }
    }

    /// What `connect` asks for.
    pub(super) fn wish(
        &mut self,
        credential: &Credential,
        cluster: Option<&ClusterId>,
    ) -> Option<Wish> {
        let verb = self.layers.matches.subcommand_matches("connect")?;
        let given = verb.get_one::<String>("wish").cloned();
        let is_wrong = given.as_deref().map(ClusterId::new).and_then(Result::err);
        if let Some(why) = is_wrong {
            let text = given.as_deref().unwrap_or_default();
            let problem = format!("connect: {text:?} is no cluster id: {why}");
            self.layers.problems.push(problem);
        }
        let Some(state_dir) = credential.state_dir.clone() else {
            let problem = "connect keeps the token it is given: set --state-dir, for example /var/lib/culvert-agent";
            self.layers.problems.push(problem.to_owned());
            return None;
        };
        let cluster = given.or_else(|| cluster.map(ToString::to_string));
        Some(Wish {
            cluster: cluster.unwrap_or_default(),
            state_dir,
        })
    }

    pub(super) fn proxy(&mut self, env: &dyn Fn(&str) -> Option<String>) -> ProxyConfig {
        let explicit = self.layers.get("proxy").cloned();
        let mut proxy =
            match ProxyConfig::new(explicit.as_ref().map(|value| value.text.as_str()), env) {
                Ok(proxy) => proxy,
                Err(why) => {
                    self.layers.problems.push(why.to_string());
                    ProxyConfig::direct()
                }
            };
        if let Some(ca) = self.path("proxy-ca") {
            let roots = Roots::SystemAnd(ca);
            let options = ClientTlsOptions {
                roots,
                ..ClientTlsOptions::default()
            };
            match ClientTls::load(options) {
                Ok(tls) => proxy = proxy.with_tls(Arc::new(tls)),
                Err(why) => self
                    .layers
                    .problems
                    .push(format!("TLS to the proxy: {why}")),
            }
        }
        proxy
    }
}

/// A hub address; in clear text only where `insecure` allows it.
///
/// # Errors
/// What is wrong with it and what to do.
pub(crate) fn hub_url(text: &str, insecure: bool) -> Result<HubUrl, String> {
    let url: HubUrl = text.parse().map_err(|why: UrlError| why.to_string())?;
    if !url.is_tls() && !insecure {
        return Err(format!(
            "{url} would carry the token in clear text; use wss://, or --allow-insecure-server for development"
        ));
    }
    Ok(url)
}

fn unix_s() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
