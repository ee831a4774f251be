//! What the two roles of a pair are told alike: how they meet, who they are, what proves it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_config::Holds::{Many, Switch, Text};
use culvert_config::{Setting, row};
use culvert_net::introduction::{Credential, Outer};
use culvert_net::tls::pair::PairIdentity;
use culvert_net::tls::{ClientTlsOptions, MinVersion, Roots, SpkiPin};
use culvert_proto::limits;
use culvert_proto::pair::RendezvousId;
use culvert_telemetry::log::LogFormat;

use super::build::{DAY, MEMORY_BUDGET_BYTES_MIN};
use super::reader::Reader;
use crate::target::{Target, TargetKind};

/// Relays, or addresses to dial, of one role.
pub const PLACES_MAX: usize = 16;
/// Where a relay listens when nobody says.
const RELAY_PORT: u16 = 443;

/// How the two sides meet.
pub enum Way {
    /// Both dial relays.
    Relay {
        /// Where they are.
        relays: Vec<Arc<Target>>,
        /// What lies around the introduction.
        outer: OuterOptions,
    },
    /// This side dials the other.
    Dial(Vec<Arc<Target>>),
    /// The other side dials this one.
    Listen(SocketAddr),
}

impl Way {
    /// The outer leg, where there is one.
    #[must_use]
    pub fn outer(&self) -> Option<&OuterOptions> {
        match self {
            Way::Relay { outer, .. } => Some(outer),
            Way::Dial(_) | Way::Listen(_) => None,
        }
    }
}

/// The outer leg, to a relay.
pub struct OuterOptions {
    /// What lies on it.
    pub outer: Outer,
    /// Whom to trust.
    pub tls: ClientTlsOptions,
}

/// The files that make a side's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// Certificate chain, leaf first, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// The pair's one CA, PEM.
    pub ca: PathBuf,
}

/// What both roles are told.
pub struct PairConfig {
    /// How they meet.
    pub way: Way,
    /// Who this side is, when files say so.
    pub identity: Option<IdentityFiles>,
    /// What the CA has to hash to.
    pub info_hash: Option<RendezvousId>,
    /// Connections at once.
    pub streams_max: u32,
    /// Memory that streams may use.
    pub memory_budget_bytes: u64,
    /// Time for connections in flight after SIGTERM.
    pub drain_grace: Duration,
    /// Probes and metrics.
    pub health_addr: SocketAddr,
    /// Log filter.
    pub log_level: String,
    /// Log lines.
    pub log_format: LogFormat,
    /// Worker threads.
    pub threads: usize,
    /// Things an operator should hear about, logged at start.
    pub warnings: Vec<String>,
}

/// How the sides meet.
pub(super) const MODE: Setting = row(
    "mode",
    Text,
    "relay",
    "relay (beacon is the same): both sides dial a relay; reverse: the bridge dials the broker; direct: the broker dials the bridge",
);
pub(super) const RELAY: Setting = Setting {
    also: &["beacon-address"],
    env: Some("CULVERT_RELAYS"),
    ..row(
        "relay",
        Many,
        "",
        "HOST[:PORT] of a relay, port 443 if none is given; several may be given, and every address behind a name is used",
    )
};
pub(super) const INFO_HASH: Setting = Setting {
    also: &["beacon-info-hash"],
    ..row(
        "info-hash",
        Text,
        "",
        "SHA-256 of the pair's CA certificate (DER), 64 hex digits: another CA is refused",
    )
};
pub(super) const TLS_CERT: Setting = row(
    "tls-cert",
    Text,
    "",
    "This side's certificate of the pair, PEM, leaf first; read again when it changes",
);
pub(super) const TLS_KEY: Setting = row(
    "tls-key",
    Text,
    "",
    "Private key of --tls-cert, PEM (PKCS#8)",
);
pub(super) const TLS_CA: Setting = row("tls-ca", Text, "", "The pair's one CA certificate, PEM");
pub(super) const RELAY_CA: Setting = row(
    "relay-ca",
    Text,
    "",
    "CA certificate of the relay's own TLS, PEM; default: the system's",
);
pub(super) const RELAY_PIN: Setting = row(
    "relay-pin",
    Text,
    "",
    "sha256:<64 hex> of the relay's public key, in place of a CA",
);
pub(super) const RELAY_PLAIN: Setting = row(
    "relay-plain",
    Switch,
    "false",
    "No TLS around the introduction at the relay: the path sees the rendezvous id; the conversation itself stays end-to-end TLS",
);
pub(super) const OUTER_TLS: Setting = row(
    "outer-tls",
    Text,
    "end",
    "end: the relay's TLS ends once the sides are matched; keep: it stays, for boxes on the way that insist, and costs a second encryption",
);
pub(super) const MAX_CONNS: Setting =
    row("max-conns", Text, "1024", "Connections at once, 1 to 16384");
pub(super) const MEMORY_BUDGET: Setting = row(
    "memory-budget",
    Text,
    "1GiB",
    "Memory for connections that wait for a reader, at least 16MiB",
);
pub(super) const DRAIN_GRACE: Setting = row(
    "drain-grace",
    Text,
    "30s",
    "Time for connections in flight after SIGTERM, 0s to 24h",
);
pub(super) const HEALTH_ADDR: Setting = row(
    "health-addr",
    Text,
    ":8081",
    "Address of /healthz, /readyz and /metrics",
);
pub(super) const LOG_LEVEL: Setting =
    row("log-level", Text, "info", "error, warn, info, debug, trace");
pub(super) const LOG_FORMAT: Setting = row("log-format", Text, "auto", "auto, logfmt, json");
pub(super) const THREADS: Setting = row(
    "threads",
    Text,
    "auto",
    "Worker threads: auto (1 or 2) or 1 to 64",
);

/// The modes by what a role does in them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Relay,
    Dial,
    Listen,
}

impl Reader {
    /// Reads what both roles share; `dials` is the mode in which this role is the one that dials.
    /// `known` relays serve where no flag names one; `later` = a store may name them.
    pub(super) fn pair(
        &mut self,
        dials: &str,
        known: &[String],
        later: bool,
    ) -> Option<PairConfig> {
        let way = self.way(dials, known, later);
        let identity = self.identity_files();
        let info_hash = self.info_hash();
        if let Some(files) = &identity {
            let at_relay = matches!(way, Some(Way::Relay { .. }));
            self.try_identity(files, info_hash, at_relay);
        }
        let config = PairConfig {
            identity,
            info_hash,
            streams_max: self.number("max-conns", 1, limits::STREAMS_MAX),
            memory_budget_bytes: self.bytes("memory-budget", MEMORY_BUDGET_BYTES_MIN),
            drain_grace: self.duration("drain-grace", Duration::ZERO, DAY),
            health_addr: self.health_addr(),
            log_level: self.text("log-level"),
            log_format: self.log_format(),
            threads: self.threads(),
            warnings: Vec::new(),
            way: way?,
        };
        Some(config)
    }

    fn mode(&mut self, dials: &str) -> Mode {
        match self.text("mode").as_str() {
            "relay" | "beacon" => Mode::Relay,
            mode @ ("reverse" | "direct") if mode == dials => Mode::Dial,
            "reverse" | "direct" => Mode::Listen,
            _ => {
                if let Some(value) = self.layers.get("mode").cloned() {
                    self.problem(&value, "is neither relay (or beacon), reverse nor direct");
                }
                Mode::Relay
            }
        }
    }

    fn way(&mut self, dials: &str, known: &[String], later: bool) -> Option<Way> {
        let mode = self.mode(dials);
        let word = self.text("mode");
        for (of, name) in [
            (Mode::Relay, "relay"),
            (Mode::Dial, "dial"),
            (Mode::Listen, "listen-pair"),
        ] {
            match self.layers.get(name).cloned() {
                Some(value) if of != mode => {
                    self.problem(
                        &value,
                        format_args!(
                            "means nothing in mode {word}; take it out, or choose another --mode"
                        ),
                    );
                }
                None if of == Mode::Relay && (later || !known.is_empty()) => {}
                None if of == mode => self.layers.problems.push(format!(
                    "no --{name}: mode {word} needs it, for example --{name} {}",
                    if of == Mode::Listen {
                        "0.0.0.0:8443"
                    } else {
                        "pair.example.com:443"
                    }
                )),
                _ => {}
            }
        }
        match mode {
            Mode::Relay => {
                let outer = self.outer();
                let mut relays = self.places("relay", Some(RELAY_PORT));
                if relays.is_empty() {
                    relays = self::relays(known).unwrap_or_default();
                }
                (later || !relays.is_empty()).then_some(Way::Relay { relays, outer })
            }
            Mode::Dial => {
                let places = self.places("dial", None);
                (!places.is_empty()).then_some(Way::Dial(places))
            }
            Mode::Listen => {
                let value = self.layers.get("listen-pair").cloned()?;
                let parsed = socket_addr(&value.text);
                if parsed.is_none() {
                    self.problem(&value, "is no address and port such as 0.0.0.0:8443");
                }
                parsed.map(Way::Listen)
            }
        }
    }

    pub(super) fn places(&mut self, name: &str, port: Option<u16>) -> Vec<Arc<Target>> {
        let places = self.list(name, |text| place(text, port).ok_or("is no HOST:PORT"));
        if places.len() > PLACES_MAX
            && let Some(value) = self.layers.get(name).cloned()
        {
            self.problem(&value, format_args!("names more than {PLACES_MAX} places"));
        }
        places.into_iter().map(Arc::new).collect()
    }

    fn outer(&mut self) -> OuterOptions {
        let plain = self.switch("relay-plain");
        let pin = self.layers.get("relay-pin").cloned();
        let ca = self.path("relay-ca");
        if let (Some(pin), Some(_)) = (&pin, &ca) {
            self.problem(pin, "and --relay-ca are both set; keep one");
        }
        let roots = match (pin, ca) {
            (Some(pin), _) => match pin.text.parse::<SpkiPin>() {
                Ok(parsed) => Roots::Pin(parsed),
                Err(why) => {
                    self.problem(&pin, why);
                    Roots::System
                }
            },
            (None, Some(ca)) => Roots::File(ca),
            (None, None) => Roots::System,
        };
        let tls = ClientTlsOptions {
            roots,
            identity: None,
            alpn: Vec::new(),
            min_version: MinVersion::Tls13,
        };
        if plain {
            self.layers.warnings.push("--relay-plain: whoever sees the path to the relay sees the rendezvous id; the conversation stays encrypted".to_owned());
        } else {
            self.try_tls("TLS to the relay", &tls);
        }
        let keep = match self.text("outer-tls").as_str() {
            "keep" => true,
            "end" => false,
            _ => {
                if let Some(value) = self.layers.get("outer-tls").cloned() {
                    self.problem(&value, "is neither end nor keep");
                }
                false
            }
        };
        let outer = if plain {
            Outer::Plain
        } else {
            Outer::Tls { keep }
        };
        OuterOptions { outer, tls }
    }

    fn identity_files(&mut self) -> Option<IdentityFiles> {
        let (cert, key, ca) = (
            self.path("tls-cert"),
            self.path("tls-key"),
            self.path("tls-ca"),
        );
        match (cert, key, ca) {
            (Some(cert), Some(key), Some(ca)) => Some(IdentityFiles { cert, key, ca }),
            (None, None, None) => None,
            _ => {
                self.layers.problems.push(
                    "--tls-cert, --tls-key and --tls-ca go together; set all three or none"
                        .to_owned(),
                );
                None
            }
        }
    }

    /// Files that are missing or do not fit are found before anything is dialled.
    fn try_identity(
        &mut self,
        files: &IdentityFiles,
        info_hash: Option<RendezvousId>,
        at_relay: bool,
    ) {
        match PairIdentity::load(&files.cert, &files.key, &files.ca) {
            Err(why) => self
                .layers
                .problems
                .push(format!("the pair's certificate: {why}")),
            Ok(identity) => {
                let (ca, leaf) = (identity.ca_der(), identity.leaf_der());
                let proof = Credential::certificate(ca, leaf, identity.key_pkcs8_der());
                if let (true, Err(why)) = (at_relay, proof) {
                    let text = format!("the pair's certificate is of no use at a relay: {why}");
                    self.layers.problems.push(text);
                }
                let seen = RendezvousId(identity.info_hash());
                if info_hash.is_some_and(|wanted| wanted != seen) {
                    self.layers.problems.push(format!(
                        "--info-hash: {} hashes to {seen}, not to this; give the CA of this pair, or mend the hash",
                        files.ca.display()
                    ));
                }
            }
        }
    }

    fn info_hash(&mut self) -> Option<RendezvousId> {
        let value = self.layers.get("info-hash").cloned()?;
        let parsed = value.text.parse().ok();
        if parsed.is_none() {
            self.problem(
                &value,
                "is not 64 hexadecimal digits; culvert pair validate prints it",
            );
        }
        parsed
    }
}

/// Relays as a join string or a registration names them; `None` when there is none.
#[must_use]
pub fn relays(texts: &[String]) -> Option<Vec<Arc<Target>>> {
    let relays = texts.iter().map(|text| place(text, Some(RELAY_PORT)));
    let relays: Vec<Arc<Target>> = relays
        .collect::<Option<Vec<_>>>()?
        .into_iter()
        .map(Arc::new)
        .collect();
    (!relays.is_empty()).then_some(relays)
}

/// HOST:PORT; the port may be missing where there is a usual one.
fn place(text: &str, port: Option<u16>) -> Option<Target> {
    if text.contains("://") {
        return None;
    }
    let parse = |text: &str| Target::parse(text, Some(TargetKind::Http), true).ok();
    parse(text).or_else(|| parse(&format!("{text}:{}", port?)))
}

/// An address and port; `:443` is every address of this host.
pub(super) fn socket_addr(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}").parse().ok(),
        None => text.replacen("localhost:", "127.0.0.1:", 1).parse().ok(),
    }
}
