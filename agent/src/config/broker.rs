//! What `culvert-agent broker` is told.

use std::net::SocketAddr;

use culvert_config::Holds::{Guarded, Many, Switch, Text};
use culvert_config::{Layers, Program, Setting, row};
use culvert_pair::PairJoin;

use super::pair::{
    DRAIN_GRACE, HEALTH_ADDR, INFO_HASH, LOG_FORMAT, LOG_LEVEL, MAX_CONNS, MEMORY_BUDGET, MODE,
    OUTER_TLS, PairConfig, RELAY, RELAY_CA, RELAY_PIN, RELAY_PLAIN, THREADS, TLS_CA, TLS_CERT,
    TLS_KEY, socket_addr,
};
use super::reader::Reader;
use super::store::StateAt;
use super::{Refused, no_verbs};

/// The verb.
pub(super) const VERB: &str = "broker";
const ANYWHERE: &str = "listen-beyond-this-host";

/// The command line of the broker.
pub const BROKER: Program = Program {
    name: "culvert-agent broker",
    about: "The side of a pair that has the clients: a local port that leads to the bridge's service",
    version: env!("CARGO_PKG_VERSION"),
    file: "/etc/culvert/broker.toml",
    settings: SETTINGS,
    references: &[],
    verbs: no_verbs,
};

const SETTINGS: &[Setting] = &[
    row(
        "listen",
        Text,
        "127.0.0.1:8199",
        "Local address that clients connect to",
    ),
    row(
        ANYWHERE,
        Switch,
        "false",
        "Allow --listen on an address that other hosts can reach: they get the service without any credential",
    ),
    MODE,
    RELAY,
    row(
        "dial",
        Many,
        "",
        "HOST:PORT of the bridge, in mode direct; every address behind a name is used",
    ),
    row(
        "listen-pair",
        Text,
        "",
        "ADDR:PORT where the bridge dials in, in mode reverse",
    ),
    INFO_HASH,
    TLS_CERT,
    TLS_KEY,
    TLS_CA,
    row(
        "join",
        Guarded,
        "",
        "Pair join string (cvr_...): relays, info hash and one-time pairing code in one word; the certificate comes from the bridge",
    ),
    row(
        "state",
        Text,
        "",
        "file:DIR or secret[:NAMESPACE]: where the certificate that the bridge gave is kept, beside the bootstrap key; memory: nowhere; memory:file:DIR or memory:secret[:NAMESPACE]: the bootstrap key is read there, the certificate asked for anew at each start",
    ),
    row(
        "flow-per-pair",
        Switch,
        "false",
        "Give every connection a pair of its own, in place of one pair that carries all",
    ),
    RELAY_CA,
    RELAY_PIN,
    RELAY_PLAIN,
    OUTER_TLS,
    MAX_CONNS,
    MEMORY_BUDGET,
    DRAIN_GRACE,
    HEALTH_ADDR,
    LOG_LEVEL,
    LOG_FORMAT,
    THREADS,
];

/// A checked configuration of a broker.
pub struct BrokerConfig {
    /// What both roles are told.
    pub pair: PairConfig,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Every connection gets a pair of its own.
    pub flow_per_pair: bool,
    /// How it gets its certificate, where no files hold one.
    pub boot: Option<BootConfig>,
}

/// How a broker gets its certificate from the bridge. No `Debug`: it holds a secret.
pub struct BootConfig {
    /// The word that the bridge's admin handed over.
    pub join: Option<PairJoin>,
    /// Where the outcome is kept.
    pub state: StateAt,
}

/// Checks everything that was set.
pub(super) fn build(layers: Layers) -> Result<BrokerConfig, Refused> {
    let mut all = Reader {
        layers,
        join_asked: false,
    };
    let listen = all.clients();
    let flow_per_pair = all.switch("flow-per-pair");
    let join = all.pair_join();
    let known = join
        .as_ref()
        .map_or(&[][..], |join| &join.relays[..])
        .to_vec();
    let state = all.state();
    let mut pair = all.pair("direct", &known, false);
    if let (Some(pair), Some(join)) = (&mut pair, &join) {
        pair.info_hash = pair.info_hash.or(join.info_hash);
    }
    all.one_source();
    match (listen, pair) {
        (Some(listen), Some(mut pair)) if all.layers.problems.is_empty() => {
            pair.warnings = all.layers.warnings;
            Ok(BrokerConfig {
                pair,
                listen,
                flow_per_pair,
                boot: state.map(|state| BootConfig { join, state }),
            })
        }
        _ => Err(Refused::Problems(all.layers.problems)),
    }
}

impl Reader {
    fn clients(&mut self) -> Option<SocketAddr> {
        let anywhere = self.switch(ANYWHERE);
        let value = self.layers.get("listen").cloned()?;
        match socket_addr(&value.text) {
            Some(addr) if anywhere || addr.ip().is_loopback() => return Some(addr),
            Some(_) => self.problem(
                &value,
                format_args!("can be reached from other hosts, which would get the service without a credential; use 127.0.0.1, or --{ANYWHERE} if that is meant"),
            ),
            None => self.problem(&value, "is no address and port; write 127.0.0.1:8199"),
        }
        None
    }

    fn pair_join(&mut self) -> Option<PairJoin> {
        let value = self.layers.get("join").cloned()?;
        match PairJoin::decode(&value.text) {
            Ok(join) => Some(join),
            Err(why) => {
                self.secret_problem(&value, why);
                None
            }
        }
    }

    /// A certificate comes from files or from the bridge, and in the second case it goes somewhere.
    fn one_source(&mut self) {
        let has = |name: &str| self.layers.get(name).is_some();
        let (files, join, state) = (has("tls-cert"), has("join"), has("state"));
        let problem = match (files, join, state) {
            (true, true, _) => "--tls-cert and --join are both set; keep one",
            (true, false, true) => "--tls-cert and --state are both set; keep one",
            (false, true, false) => {
                "--join needs --state: where is the certificate kept? file:DIR, secret or memory"
            }
            (false, false, false) => {
                "nothing says who this broker is: set --tls-cert, --tls-key and --tls-ca, or --join and --state"
            }
            _ => return,
        };
        self.layers.problems.push(problem.to_owned());
    }
}
