//! Flags and verbs; the only place that reads them or the environment.

pub mod access;
pub mod connect;
pub mod debug;
pub mod license;
pub mod login;
pub mod pair;
pub mod store;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Reach private clusters that only dial out.
#[derive(Parser)]
#[command(name = "culvert", version, propagate_version = true)]
pub struct Cli {
    /// Options of every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Args)]
pub struct Global {
    /// Control's admin API: unix:PATH, https://HUB or http://127.0.0.1:PORT
    /// [default: where culvert login went, else unix:/run/culvert/api.sock].
    #[arg(long, global = true, env = "CULVERT_API")]
    pub api: Option<String>,
    /// CA certificate of an https:// API, PEM; default: the system's.
    #[arg(long, global = true, value_name = "FILE", env = "CULVERT_API_CA")]
    pub api_ca: Option<PathBuf>,
    /// Where a login is kept.
    #[command(flatten)]
    pub login: login::Place,
    /// File with the admin token or an API token, in place of a login.
    #[arg(long, global = true, env = "CULVERT_API_TOKEN_FILE")]
    pub api_token_file: Option<PathBuf>,
    /// How to print results.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Print what a changing verb would do, and do nothing.
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Do not ask before a destructive change.
    #[arg(long, global = true)]
    pub yes: bool,
}

/// How to print results.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The verbs.
#[derive(Subcommand)]
pub enum Verb {
    /// Run control, data plane, agent and a demo service on this machine, for trying out.
    Quickstart(Quickstart),
    /// Clusters: the private sites that agents connect from.
    #[command(subcommand)]
    Cluster(Cluster),
    /// Tokens: what an agent of a cluster shows.
    #[command(subcommand)]
    Token(Token),
    /// Log in to a hub's API, so that this program is let in from here.
    Login(login::Login),
    /// End the login.
    Logout,
    /// Who control takes the caller for.
    Whoami,
    /// Routes: ways to services beside HTTP, by TCP address or TLS server name.
    #[command(subcommand, alias = "routes")]
    Route(Route),
    /// Personal tokens: what people show to reach services from a laptop.
    #[command(subcommand, alias = "personal-tokens")]
    PersonalToken(PersonalToken),
    /// Agents: what to run on the private side, and who is connected.
    #[command(subcommand, alias = "agents")]
    Agent(Agent),
    /// Agents that ask for a token: let them in, or not.
    #[command(subcommand)]
    Connect(connect::Connect),
    /// Pairs: two sides that only dial out, joined at a relay or directly.
    #[command(subcommand, aliases = ["target", "source"])]
    Pair(pair::Pair),
    /// The licence: its standing, and what its server is told.
    #[command(subcommand, alias = "licence")]
    License(license::License),
    /// The CAs that certify agents.
    #[command(subcommand)]
    Ca(Ca),
    /// Control's store.
    #[command(subcommand)]
    Store(store::Store),
    /// The audit log: who did what, newest first.
    Audit(Audit),
    /// What the hub is doing.
    Status,
    /// The connections of a data plane, every second: who is slow, and on which leg.
    Top(Top),
    /// What this host permits, and why not.
    #[command(subcommand)]
    Check(Check),
    /// Closer looks, for a while.
    #[command(subcommand)]
    Debug(debug::Debug),
    /// Become PROGRAM, ended by SIGTERM when the parent ends. For quickstart.
    #[command(hide = true)]
    Follow {
        /// The parent's process id: it may be gone already.
        parent: u32,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        program: Vec<std::ffi::OsString>,
    },
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Versions: this program, and the wire it speaks.
    Version,
}

/// `culvert audit`.
#[derive(Args)]
pub struct Audit {
    /// Only of this subject or e-mail address.
    #[arg(long)]
    pub actor: Option<String>,
    /// Only of this cluster.
    #[arg(long)]
    pub cluster: Option<String>,
    /// Only with this verb, for example apply, delete, exec_open.
    #[arg(long)]
    pub verb: Option<String>,
    /// Only with this outcome: attempted, success, denied, failure.
    #[arg(long)]
    pub outcome: Option<String>,
    /// Only of this request.
    #[arg(long)]
    pub request_id: Option<String>,
    /// Only from then on: 90s, 15m, 24h, 7d ago, or RFC 3339.
    #[arg(long)]
    pub since: Option<String>,
    /// Rows at most, 1 to 500.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: u32,
    /// Go on with rows as they are recorded.
    #[arg(short, long)]
    pub follow: bool,
}

/// `culvert cluster`.
#[derive(Subcommand)]
pub enum Cluster {
    /// Register a cluster and print the line to paste on its side.
    Add(Add),
    /// All clusters.
    #[command(alias = "ls")]
    List,
    /// One cluster.
    Show {
        /// The cluster's id.
        id: String,
    },
    /// Say which people may enter a cluster, and as whom; what was said before is gone.
    Access(access::Access),
    /// Forget a cluster: its tokens, sessions and live streams end.
    #[command(alias = "rm")]
    Remove {
        /// The cluster's id.
        id: String,
    },
}

/// `culvert cluster add`.
#[derive(Args)]
pub struct Add {
    /// Id: 1 to 63 lower-case letters, digits and inner hyphens.
    pub id: String,
    /// A name for people.
    #[arg(long)]
    pub name: Option<String>,
    /// A label, may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub labels: Vec<(String, String)>,
    /// Several agents with this cluster's token: share the load, or the last one wins, or refuse.
    #[arg(long, value_parser = ["spread", "replace", "refuse"])]
    pub policy: Option<String>,
    /// What the agent reaches: a Kubernetes API or another HTTP service.
    #[arg(long, value_parser = ["kube", "http"])]
    pub target_kind: Option<String>,
    /// Where the agent finds the hub.
    #[command(flatten)]
    pub join: Join,
}

/// What goes into a join string.
#[derive(Args)]
pub struct Join {
    /// The hub's address for agents, may be repeated; default: control's public URL.
    #[arg(
        long = "hub",
        value_name = "WSS-URL",
        env = "CULVERT_HUB",
        value_delimiter = ','
    )]
    pub hubs: Vec<String>,
    /// Hash of the hub's public key, where its certificate is not publicly trusted.
    #[arg(long, value_name = "sha256:HEX", env = "CULVERT_HUB_PIN")]
    pub pin: Option<String>,
    /// The agent shows a certificate, for which it changes a bootstrap token: good once, for 15 minutes.
    #[arg(long, requires = "hubs")]
    pub mtls: bool,
    /// Where it does so; default: control's public URL, then the first --hub.
    #[arg(long, value_name = "HTTPS-URL", requires = "mtls")]
    pub registration_url: Option<String>,
    /// For whom the lines to paste are.
    #[arg(long = "format", value_enum, default_value_t = Paste::Shell)]
    pub paste: Paste,
    /// Life of the join string in hours.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=8760))]
    pub join_hours: u64,
}

/// For whom the lines to paste on the private side are.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Paste {
    /// One command that runs the agent.
    Shell,
    /// A script for root that installs a service and the secret it reads.
    Systemd,
}

/// `culvert token`.
#[derive(Subcommand)]
pub enum Token {
    /// Make one more token for a cluster; it is shown once.
    Mint {
        /// The cluster's id.
        cluster: String,
        /// Life in hours; without it the token does not expire.
        #[arg(long)]
        expires_hours: Option<u64>,
    },
    /// Make a new token and end the others after an overlap.
    Rotate {
        /// The cluster's id.
        cluster: String,
        /// How long the old tokens stay valid, such as 24h, 30m or 0s.
        #[arg(long, default_value = "24h", value_parser = seconds, conflicts_with = "now")]
        overlap: u64,
        /// End the old tokens at once; sessions that used them are cut.
        #[arg(long)]
        now: bool,
    },
    /// End one token, or every token, session and live stream of a cluster, within a second.
    Revoke {
        /// The cluster's id.
        cluster: String,
        /// Only this token.
        #[arg(long)]
        id: Option<String>,
    },
    /// API tokens: what machines show to control itself.
    #[command(subcommand)]
    Api(login::ApiToken),
    /// The tokens of a cluster: ids, expiry and last use, never the tokens.
    #[command(alias = "ls")]
    List {
        /// The cluster's id.
        cluster: String,
    },
}

/// `culvert route`.
#[derive(Subcommand)]
pub enum Route {
    /// Lead clients to a service and print what the agent needs for it.
    Add(AddRoute),
    /// The routes of one cluster, or of all.
    #[command(alias = "ls")]
    List {
        /// The cluster's id.
        cluster: Option<String>,
    },
    /// Remove a route; its connections end.
    #[command(alias = "rm")]
    Remove {
        /// The cluster's id.
        cluster: String,
        /// The route's id.
        id: String,
    },
}

/// `culvert route add`.
#[derive(Args)]
#[command(group = clap::ArgGroup::new("way").required(true).args(["tcp", "sealed"]))]
pub struct AddRoute {
    /// The cluster's id.
    pub cluster: String,
    /// The service, as the agents call it.
    pub service: String,
    /// Lead everyone who connects to this address of the data planes there.
    #[arg(long, value_name = "IP:PORT")]
    pub tcp: Option<String>,
    /// Lead everyone whose TLS asks for this name there; the hub does not open the TLS.
    #[arg(long, value_name = "SERVER-NAME")]
    pub sealed: Option<String>,
    /// Serve the server name at an address of its own, not on the public listener.
    #[arg(
        long,
        value_name = "IP:PORT",
        requires = "sealed",
        conflicts_with = "tcp"
    )]
    pub addr: Option<String>,
}

/// `culvert personal-token`.
#[derive(Subcommand)]
pub enum PersonalToken {
    /// Make a token for a person; it is shown once.
    Mint(MintPersonal),
    /// Live tokens: ids, people and what they reach, never the tokens.
    #[command(alias = "ls")]
    List,
    /// End a token, and what it opened, within a second.
    #[command(alias = "rm")]
    Revoke {
        /// The token's id.
        id: String,
    },
}

/// `culvert personal-token mint`.
#[derive(Args)]
pub struct MintPersonal {
    /// Whose it is, for logs and audit: a name or an address.
    #[arg(long, value_name = "NAME")]
    pub principal: String,
    /// What it reaches, may be repeated; CLUSTER/* is every service of the cluster.
    #[arg(long = "grant", value_name = "CLUSTER/SERVICE", required = true)]
    pub grants: Vec<String>,
    /// Life, such as 8h or 30d; default: as long as control allows.
    #[arg(long, value_parser = seconds)]
    pub ttl: Option<u64>,
}

/// `culvert agent`.
#[derive(Subcommand)]
pub enum Agent {
    /// Mint a token and print the line to paste on the private side.
    Command {
        /// The cluster's id.
        cluster: String,
        /// Where the agent finds the hub.
        #[command(flatten)]
        join: Join,
    },
    /// Connected agents.
    #[command(alias = "ls")]
    List,
}

/// `culvert ca`.
#[derive(Subcommand)]
pub enum Ca {
    /// The CAs, the one that certifies listeners first.
    #[command(alias = "ls")]
    List,
    /// Make a further CA: trusted everywhere, signs nothing yet.
    Stage,
    /// Let the staged CA sign; the one before stays trusted.
    Promote,
    /// Trust a CA no more; agents that have nothing newer enrol anew.
    Retire {
        /// The CA's id.
        id: String,
    },
}

/// Which data plane.
#[derive(Args)]
pub struct Dataplane {
    /// The admin listener of a data plane.
    #[arg(
        long,
        value_name = "URL",
        env = "CULVERT_DATAPLANE_ADMIN",
        default_value = "http://127.0.0.1:9901"
    )]
    pub dataplane: String,
}

/// `culvert top`.
#[derive(Args)]
pub struct Top {
    /// Which data plane.
    #[command(flatten)]
    pub at: Dataplane,
    /// Only this cluster.
    #[arg(long)]
    pub cluster: Option<String>,
    /// What stands first.
    #[arg(long, default_value = "rate", value_parser = crate::top::SORTS)]
    pub sort: String,
    /// Connections listed.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// Print once and end.
    #[arg(long)]
    pub once: bool,
}

/// `culvert check`.
#[derive(Subcommand)]
pub enum Check {
    /// The eBPF observer of a data plane: which tier it would run in here.
    Ebpf {
        /// The data plane's program; default: the one beside this, else on the PATH.
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
        /// The trace programs too.
        #[arg(long)]
        trace: bool,
    },
}

/// `culvert quickstart`.
#[derive(Args)]
pub struct Quickstart {
    /// A service to reach through the tunnel; without it a demo service is started.
    #[arg(long, value_name = "URL")]
    pub target: Option<url::Url>,
    /// Where state is kept; an existing directory is used again.
    #[arg(long, env = "CULVERT_QUICKSTART_DIR")]
    pub state_dir: Option<PathBuf>,
    /// End after one request has gone through the tunnel; takes any free ports.
    #[arg(long)]
    pub check: bool,
    /// Listener for agents.
    #[arg(long, default_value = "127.0.0.1:8443")]
    pub addr: std::net::SocketAddr,
    /// Listener for clients.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub internal_addr: std::net::SocketAddr,
    /// Where state goes without --state-dir.
    #[arg(env = "XDG_STATE_HOME", long, hide = true)]
    pub xdg_state_home: Option<PathBuf>,
    /// Where state goes without --state-dir and XDG_STATE_HOME.
    #[arg(env = "HOME", long, hide = true)]
    pub home: Option<PathBuf>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("wants KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// `90s`, `30m`, `24h`, `7d` or a number of seconds.
/// `90s`, `15m`, `24h`, `7d`.
pub fn seconds(text: &str) -> Result<u64, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(format!("unit {unit:?} is none of s, m, h, d")),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no duration"))?;
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("{text:?} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(seconds("24h"), Ok(86_400));
        assert_eq!(seconds("0s"), Ok(0));
        assert_eq!(seconds("90"), Ok(90));
        for bad in ["", "h", "1w", "-1s", "99999999999999999999h", "1h30m"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
