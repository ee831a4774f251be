//! Flags of `culvert pair`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `culvert pair`.
#[derive(Subcommand)]
pub enum Pair {
    /// On the bridge's side: make a pair and print the join string for the broker's side.
    Init(Init),
    /// On the broker's side: make its bootstrap key and print the pairing code that stands for it.
    Fingerprint(Fingerprint),
    /// On the bridge's side: let the broker in whose pairing code this is; again: repair it.
    Register(Register),
    /// Make all certificates of a pair by hand, as files.
    Connect(Connect),
    /// Check certificates, stores and relays, and say what to mend.
    Validate(Examine),
    /// Write what support needs into a file without secrets.
    Debug(Debug),
    /// Print or write the systemd unit of a bridge, a broker or a relay.
    Install(Install),
}

/// The Kubernetes API of `secret:` stores; the defaults are those of a pod.
#[derive(Args)]
pub struct Kube {
    /// Kubernetes API of secret: stores, outside of the cluster.
    #[arg(long, value_name = "HTTPS-URL", env = "CULVERT_KUBE_API")]
    pub kube_api: Option<String>,
    /// CA certificate of --kube-api, PEM.
    #[arg(long, value_name = "FILE", env = "CULVERT_KUBE_CA_FILE")]
    pub kube_ca_file: Option<PathBuf>,
    /// File with a token for --kube-api.
    #[arg(long, value_name = "FILE", env = "CULVERT_KUBE_TOKEN_FILE")]
    pub kube_token_file: Option<PathBuf>,
}

/// Where relays are.
#[derive(Args)]
pub struct Relays {
    /// HOST[:PORT] of a relay, port 443 if none is given; may be repeated.
    #[arg(
        long = "relay",
        alias = "beacon-address",
        value_name = "HOST:PORT",
        env = "CULVERT_RELAYS",
        value_delimiter = ','
    )]
    pub relays: Vec<String>,
}

/// The bridge's store.
#[derive(Args)]
pub struct StoreFlags {
    /// Where the bridge keeps its pairs: file:DIR or secret:NAMESPACE[/PREFIX].
    #[arg(long, value_name = "STORE", env = "CULVERT_PAIR_STORE")]
    pub store: Option<String>,
    /// Where to reach a Vault as a store; a later version.
    #[arg(long, value_name = "HTTPS-URL", hide = true)]
    pub secretstore_address: Option<String>,
    /// What to show to a Vault; a later version.
    #[arg(long, value_name = "TOKEN", hide = true)]
    pub secretstore_token: Option<String>,
    /// The Kubernetes API.
    #[command(flatten)]
    pub kube: Kube,
}

/// `culvert pair init`.
#[derive(Args)]
pub struct Init {
    /// Name of the pair: 1 to 63 lower-case letters, digits and inner hyphens.
    #[arg(long)]
    pub name: String,
    /// Where both sides meet.
    #[command(flatten)]
    pub relays: Relays,
    /// Where the pair is kept.
    #[command(flatten)]
    pub store: StoreFlags,
    /// The broker may come back with its bootstrap key at every start: for --state memory:file:DIR.
    #[arg(long)]
    pub reissue: bool,
    /// The service, for the printed command of the bridge.
    #[arg(long, value_name = "HOST:PORT", default_value = "HOST:PORT")]
    pub to: String,
}

/// `culvert pair fingerprint`.
#[derive(Args)]
pub struct Fingerprint {
    /// Where the broker keeps its keys: file:DIR or secret:NAMESPACE[/PREFIX].
    #[arg(long, value_name = "STORE", env = "CULVERT_PAIR_STATE")]
    pub state: String,
    /// Where both sides will meet, for the printed commands.
    #[command(flatten)]
    pub relays: Relays,
    /// The Kubernetes API.
    #[command(flatten)]
    pub kube: Kube,
}

/// `culvert pair register`.
#[derive(Args)]
pub struct Register {
    /// The pairing code that culvert pair fingerprint printed, or the join string of a pair that is
    /// to be repaired; - reads it from standard input.
    #[arg(long, value_name = "cvf_...|-")]
    pub fingerprint: String,
    /// Name of the pair; default: pair- and its id.
    #[arg(long)]
    pub name: Option<String>,
    /// Where both sides meet.
    #[command(flatten)]
    pub relays: Relays,
    /// Where the pair is kept.
    #[command(flatten)]
    pub store: StoreFlags,
    /// The broker may come back with its bootstrap key at every start: for --state memory:file:DIR.
    #[arg(long)]
    pub reissue: bool,
    /// The service, for the printed command of the bridge.
    #[arg(long, value_name = "HOST:PORT", default_value = "HOST:PORT")]
    pub to: String,
}

/// `culvert pair connect`.
#[derive(Args)]
pub struct Connect {
    /// Name of the pair: 1 to 63 lower-case letters, digits and inner hyphens.
    #[arg(long, default_value = "pair")]
    pub name: String,
    /// Where both sides meet.
    #[command(flatten)]
    pub relays: Relays,
    /// Where the files go: file:DIR; they are in a directory of their own below it.
    #[command(flatten)]
    pub store: StoreFlags,
    /// The service, for the printed command of the bridge.
    #[arg(long, value_name = "HOST:PORT", default_value = "HOST:PORT")]
    pub to: String,
}

/// What `culvert pair validate` and `debug` look at.
#[derive(Args)]
pub struct Examine {
    /// The bridge's store: file:DIR or secret:NAMESPACE[/PREFIX].
    #[arg(long, value_name = "STORE", env = "CULVERT_PAIR_STORE")]
    pub store: Option<String>,
    /// The broker's state: file:DIR or secret:NAMESPACE[/PREFIX].
    #[arg(long, value_name = "STORE", env = "CULVERT_PAIR_STATE")]
    pub state: Option<String>,
    /// A side's certificate, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// The pair's CA certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// The side that --tls-cert is of; default: what the certificate says.
    #[arg(long, value_enum, requires = "tls_cert")]
    pub role: Option<Side>,
    /// What every CA must hash to: 64 hex digits.
    #[arg(long, alias = "beacon-info-hash", value_name = "HEX")]
    pub info_hash: Option<String>,
    /// Relays beside those of the store.
    #[command(flatten)]
    pub relays: Relays,
    /// CA certificate of the relay's own TLS, PEM; default: the system's.
    #[arg(long, value_name = "FILE", conflicts_with = "relay_pin")]
    pub relay_ca: Option<PathBuf>,
    /// Hash of the relay's public key, in place of a CA.
    #[arg(long, value_name = "sha256:HEX")]
    pub relay_pin: Option<String>,
    /// The relay takes introductions without TLS.
    #[arg(long)]
    pub relay_plain: bool,
    /// The Kubernetes API.
    #[command(flatten)]
    pub kube: Kube,
}

/// `culvert pair debug`.
#[derive(Args)]
pub struct Debug {
    /// The file to write; it must not exist. Default: culvert-pair-debug-<time>.json here.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// What to look at.
    #[command(flatten)]
    pub examine: Examine,
}

/// `culvert pair install`.
#[derive(Args)]
pub struct Install {
    /// What is installed.
    #[arg(long, value_enum)]
    pub role: Installed,
    /// How the sides meet.
    #[arg(long, value_enum, default_value_t = Mode::Relay)]
    pub mode: Mode,
    /// Where both sides meet, in mode relay.
    #[command(flatten)]
    pub relays: Relays,
    /// The bridge's service.
    #[arg(long, value_name = "HOST:PORT")]
    pub to: Option<String>,
    /// Where the broker's clients connect.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8199")]
    pub listen: SocketAddr,
    /// The other side, for the side that dials it in mode reverse or direct.
    #[arg(long, value_name = "HOST:PORT")]
    pub dial: Option<String>,
    /// Where the other side dials in, in mode reverse or direct.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:8443")]
    pub listen_pair: SocketAddr,
    /// Where this side keeps its pairs or keys; default: a directory below /var/lib.
    #[arg(long, alias = "state", value_name = "STORE")]
    pub store: Option<String>,
    /// The broker joins with the join string in /etc/culvert/pair.join.
    #[arg(long)]
    pub join: bool,
    /// Write the unit into this directory, such as /etc/systemd/system, and print nothing to paste.
    #[arg(long, value_name = "DIR")]
    pub unit_dir: Option<PathBuf>,
}

/// A side of a pair.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// Has the service.
    Bridge,
    /// Has the listener.
    Broker,
}

/// What is installed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Installed {
    /// The side that has the service.
    Bridge,
    /// The side that has the listener.
    Broker,
    /// Where both meet.
    Relay,
}

/// How the sides meet.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Both dial a relay.
    #[value(alias = "beacon")]
    Relay,
    /// The bridge dials the broker.
    Reverse,
    /// The broker dials the bridge.
    Direct,
}
