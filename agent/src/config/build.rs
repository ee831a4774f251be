//! Texts to a checked [`Config`]; every problem is kept, none ends the search.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use culvert_config::{Layers, Sourced};
use culvert_net::dial::{HubUrl, ProxyConfig, UrlError};
use culvert_net::tls::{ClientTls, ClientTlsOptions, MinVersion, Roots, SpkiPin};
use culvert_proto::id::ClusterId;
use culvert_proto::join::JoinString;
use culvert_proto::limits;
use culvert_proto::token::TokenText;
use culvert_telemetry::log::LogFormat;

use super::{Config, Credential, HUBS_MAX, Refused, THREADS_MAX};
use crate::credential::Kept;
use crate::target::{Target, TargetKind};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Checks everything that was set.
pub(super) fn build(
    layers: Layers,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Refused> {
    let mut all = Builder {
        layers,
        join_asked: false,
    };
    let join = all.join();
    let allow_insecure_server = all.switch("allow-insecure-server");
    let hubs = all.hubs(join.as_ref(), allow_insecure_server);
    let cluster = all.cluster(join.as_ref());
    let hub_tls = all.hub_tls(join.as_ref());
    let credential = all.credential(join, hub_tls.identity.is_some());
    let proxy = all.proxy(env);
    let target = all.target();
    let target_tls = target
        .as_ref()
        .filter(|target| target.tls)
        .map(|_| all.target_tls());
    let allow_addresses = all.list("allow-address", |text| {
        text.parse()
            .or_else(|_| text.parse().map(|ip: std::net::IpAddr| ip.into()))
            .map_err(|_| "is no address or network")
    });
    let config = Config {
        hubs,
        cluster,
        credential,
        hub_tls,
        allow_insecure_server,
        proxy,
        service_account_token: all.service_account_token(target.as_ref()),
        target_tls,
        allow_addresses,
        region: all.layers.get("region").map(|region| region.text.clone()),
        labels: all.list("label", |text| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err("is not key=value"),
        }),
        retry_max: all.duration(
            "max-retry",
            Duration::from_millis(100),
            Duration::from_secs(3600),
        ),
        streams_max: all.number("max-conns", 1, limits::STREAMS_MAX),
        health_addr: all.health_addr(),
        log_level: all.text("log-level"),
        log_format: all.log_format(),
        threads: all.threads(),
        drain_grace: all.duration("drain-grace", Duration::ZERO, DAY),
        warnings: Vec::new(),
        // Kept for last: without it there is no configuration at all.
        target: match target {
            Some(target) if all.layers.problems.is_empty() => target,
            _ => return Err(Refused::Problems(all.layers.problems)),
        },
    };
    Ok(Config {
        warnings: all.layers.warnings,
        ..config
    })
}

struct Builder {
    layers: Layers,
    /// A join string was given, good or not.
    join_asked: bool,
}

impl Builder {
    fn problem(&mut self, value: &Sourced, why: impl Display) {
        self.layers
            .problems
            .push(format!("{}: {:?} {why}", value.from, value.text));
    }

    /// For values that must not be shown.
    fn secret_problem(&mut self, value: &Sourced, why: impl Display) {
        self.layers.problems.push(format!("{}: {why}", value.from));
    }

    fn text(&self, name: &str) -> String {
        self.layers
            .get(name)
            .map(|value| value.text.clone())
            .unwrap_or_default()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.layers
            .get(name)
            .map(|value| PathBuf::from(&value.text))
    }

    fn switch(&mut self, name: &str) -> bool {
        let Some(value) = self.layers.get(name).cloned() else {
            return false;
        };
        match value.text.as_str() {
            "true" | "1" => true,
            "false" | "0" => false,
            _ => {
                self.problem(&value, "is neither true nor false");
                false
            }
        }
    }

    fn number<N: FromStr + PartialOrd + Display + Copy>(
        &mut self,
        name: &str,
        min: N,
        max: N,
    ) -> N {
        let Some(value) = self.layers.get(name).cloned() else {
            return min;
        };
        match value.text.parse() {
            Ok(number) if number >= min && number <= max => number,
            _ => {
                self.problem(&value, format_args!("is not a number from {min} to {max}"));
                min
            }
        }
    }

    fn list<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, &'static str>) -> Vec<T> {
        let Some(value) = self.layers.get(name).cloned() else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for item in value
            .text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            match parse(item) {
                Ok(item) => out.push(item),
                Err(why) => self.problem(&value, format_args!("holds {item:?}, which {why}")),
            }
        }
        out
    }

    fn duration(&mut self, name: &str, min: Duration, max: Duration) -> Duration {
        let Some(value) = self.layers.get(name).cloned() else {
            return min;
        };
        match parse_duration(&value.text) {
            Some(time) if time >= min && time <= max => time,
            _ => {
                self.problem(
                    &value,
                    format_args!(
                        "is not a time from {min:?} to {max:?}; write 500ms, 30s, 5m or 1h"
                    ),
                );
                min
            }
        }
    }

    fn join(&mut self) -> Option<JoinString> {
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

    fn hubs(&mut self, join: Option<&JoinString>, insecure: bool) -> Vec<HubUrl> {
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

    fn cluster(&mut self, join: Option<&JoinString>) -> Option<ClusterId> {
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

    fn hub_tls(&mut self, join: Option<&JoinString>) -> ClientTlsOptions {
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
            (None, None, None) => Roots::System,
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

    /// A missing or bad file is a start error, never weaker authentication.
    fn try_tls(&mut self, what: &str, options: &ClientTlsOptions) {
        if let Err(why) = ClientTls::load(options.clone()) {
            self.layers.problems.push(format!("{what}: {why}"));
        }
    }

    fn credential(&mut self, join: Option<JoinString>, has_certificate: bool) -> Credential {
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
        let token = given
            .as_ref()
            .and_then(|value| match TokenText::new(&value.text) {
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
        let asked = given.is_some() || self.join_asked;
        if !asked && kept.is_none() && !has_certificate {
            self.layers.problems.push(
                "no credential: set --token-file, CULVERT_TOKEN or --join, or give --client-cert"
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

    fn proxy(&mut self, env: &dyn Fn(&str) -> Option<String>) -> ProxyConfig {
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

    fn target(&mut self) -> Option<Target> {
        let value = self.layers.get("target")?.clone();
        let kind = match self.layers.get("target-kind").cloned() {
            None => None,
            Some(kind) => match kind.text.as_str() {
                "http" => Some(TargetKind::Http),
                "kube" => Some(TargetKind::Kube),
                _ => {
                    self.problem(&kind, "is neither http nor kube");
                    None
                }
            },
        };
        let plain = self.switch("plain-target");
        Target::parse(&value.text, kind, plain)
            .map_err(|why| self.layers.problems.push(format!("{}: {why}", value.from)))
            .ok()
    }

    fn target_tls(&mut self) -> ClientTlsOptions {
        let insecure = self.switch("insecure");
        let ca = self.layers.get("ca-cert").cloned();
        let ca = ca.filter(|ca| !ca.defaulted || PathBuf::from(&ca.text).exists());
        let roots = match (insecure, ca) {
            (true, _) => {
                self.layers
                    .warnings
                    .push("--insecure: the target's certificate is not verified".to_owned());
                Roots::Insecure
            }
            (false, Some(ca)) => Roots::File(ca.text.into()),
            (false, None) => Roots::System,
        };
        let options = ClientTlsOptions {
            roots,
            identity: None,
            alpn: vec![b"http/1.1".to_vec()],
            min_version: MinVersion::Tls12,
        };
        self.try_tls("TLS to the target", &options);
        options
    }

    /// The default path counts where it exists, and for Kubernetes targets only;
    /// a path that was asked for has to be readable.
    fn service_account_token(&mut self, target: Option<&Target>) -> Option<PathBuf> {
        let value = self.layers.get("sa-token-path")?.clone();
        let path = PathBuf::from(&value.text);
        if !value.defaulted {
            if let Err(why) = crate::upstream::kube::TokenFile::new(path.clone()).bearer() {
                self.problem(&value, format_args!("cannot be used: {why}"));
            }
            return Some(path);
        }
        let kube = target.is_some_and(|target| target.kind == TargetKind::Kube);
        if kube && !path.exists() {
            self.layers.warnings.push(format!(
                "{} does not exist: requests go to the target without a bearer token",
                path.display()
            ));
        }
        (kube && path.exists()).then_some(path)
    }

    fn health_addr(&mut self) -> SocketAddr {
        let Some(value) = self.layers.get("health-addr").cloned() else {
            return SocketAddr::from(([127, 0, 0, 1], 0));
        };
        let text = match value.text.strip_prefix(':') {
            Some(port) => format!("0.0.0.0:{port}"),
            None => value.text.replacen("localhost:", "127.0.0.1:", 1),
        };
        text.parse().unwrap_or_else(|_| {
            self.problem(
                &value,
                "is not an address and port such as :8081 or 127.0.0.1:8081",
            );
            SocketAddr::from(([127, 0, 0, 1], 0))
        })
    }

    fn log_format(&mut self) -> LogFormat {
        let Some(value) = self.layers.get("log-format").cloned() else {
            return LogFormat::Auto;
        };
        match value.text.as_str() {
            "auto" => LogFormat::Auto,
            "logfmt" => LogFormat::Logfmt,
            "json" => LogFormat::Json,
            _ => {
                self.problem(&value, "is neither auto, logfmt nor json");
                LogFormat::Auto
            }
        }
    }

    fn threads(&mut self) -> usize {
        if self.text("threads") == "auto" {
            return std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2));
        }
        self.number("threads", 1, THREADS_MAX)
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

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

fn unix_s() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
