//! What `culvert-agent bridge` is told.

use std::sync::Arc;

use culvert_config::Holds::{Many, Text};
use culvert_config::{Layers, Program, Setting, row};
use culvert_pair::Stored;
use ipnet::IpNet;

use super::pair::{
    DRAIN_GRACE, HEALTH_ADDR, INFO_HASH, LOG_FORMAT, LOG_LEVEL, MAX_CONNS, MEMORY_BUDGET, MODE,
    OUTER_TLS, PairConfig, RELAY, RELAY_CA, RELAY_PIN, RELAY_PLAIN, THREADS, TLS_CA, TLS_CERT,
    TLS_KEY,
};
use super::reader::Reader;
use super::{Refused, no_verbs};
use crate::target::{Target, TargetKind};

/// The verb.
pub(super) const VERB: &str = "bridge";

/// The command line of the bridge.
pub const BRIDGE: Program = Program {
    name: "culvert-agent bridge",
    about: "The side of a pair that has the service: waits for its broker and connects what it sends",
    version: env!("CARGO_PKG_VERSION"),
    file: "/etc/culvert/bridge.toml",
    settings: SETTINGS,
    references: &[],
    verbs: no_verbs,
};

const SETTINGS: &[Setting] = &[
    Setting {
        also: &["vault-addr"],
        ..row(
            "to",
            Text,
            "",
            "HOST:PORT of the one service that the broker's clients reach",
        )
    },
    MODE,
    RELAY,
    row(
        "dial",
        Many,
        "",
        "HOST:PORT of the broker, in mode reverse; every address behind a name is used",
    ),
    row(
        "listen-pair",
        Text,
        "",
        "ADDR:PORT where the broker dials in, in mode direct",
    ),
    INFO_HASH,
    TLS_CERT,
    TLS_KEY,
    TLS_CA,
    row(
        "store",
        Text,
        "",
        "file:DIR or secret:NAMESPACE: serve the pairs registered there, also those that come later, in place of --tls-cert",
    ),
    RELAY_CA,
    RELAY_PIN,
    RELAY_PLAIN,
    OUTER_TLS,
    row(
        "allow-address",
        Many,
        "",
        "Loopback, link-local or metadata address or network that the name of the service may resolve to",
    ),
    MAX_CONNS,
    MEMORY_BUDGET,
    DRAIN_GRACE,
    HEALTH_ADDR,
    LOG_LEVEL,
    LOG_FORMAT,
    THREADS,
];

/// A checked configuration of a bridge.
pub struct BridgeConfig {
    /// What both roles are told.
    pub pair: PairConfig,
    /// The one service.
    pub to: Arc<Target>,
    /// Where registrations are followed.
    pub store: Option<Arc<Stored>>,
    /// Special addresses the service may resolve to.
    pub allow_addresses: Vec<IpNet>,
}

/// Checks everything that was set.
pub(super) fn build(layers: Layers) -> Result<BridgeConfig, Refused> {
    let mut all = Reader {
        layers,
        join_asked: false,
    };
    let to = all.service();
    let store = all.store("store");
    let later = all.layers.get("store").is_some();
    let pair = all.pair("reverse", &[], later);
    let allow_addresses = all.addresses();
    match (all.layers.get("tls-cert"), all.layers.get("store").cloned()) {
        (Some(_), Some(store)) => {
            all.problem(&store, "and --tls-cert are both set; keep one");
        }
        (None, None) => all.layers.problems.push(
            "nothing says who this bridge is: set --tls-cert, --tls-key and --tls-ca, or --store; culvert pair init or register makes them".to_owned(),
        ),
        _ => {}
    }
    match (to, pair) {
        (Some(to), Some(mut pair)) if all.layers.problems.is_empty() => {
            pair.warnings = all.layers.warnings;
            Ok(BridgeConfig {
                pair,
                to: Arc::new(to),
                store,
                allow_addresses,
            })
        }
        _ => Err(Refused::Problems(all.layers.problems)),
    }
}

impl Reader {
    fn service(&mut self) -> Option<Target> {
        let Some(value) = self.layers.get("to").cloned() else {
            self.layers.problems.push(
                "no --to: set the service's HOST:PORT, for example --to 127.0.0.1:5432".to_owned(),
            );
            return None;
        };
        // The source's flag held the URL of a Vault.
        let bare = value.text.trim_end_matches('/');
        let bare = match bare.split_once("://") {
            Some(("https" | "http" | "tcp", rest)) => rest,
            _ => bare,
        };
        let target = Target::parse(bare, Some(TargetKind::Http), true).ok();
        if target.is_none() {
            self.problem(
                &value,
                "is no HOST:PORT of one service, such as 127.0.0.1:5432",
            );
        }
        target
    }
}
