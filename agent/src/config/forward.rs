//! What `culvert-agent forward` is told.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Arg, ArgAction, Command};
use culvert_config::Layers;
use culvert_net::dial::{HubUrl, ProxyConfig};
use culvert_net::tls::ClientTlsOptions;
use culvert_proto::id::ClusterId;
use culvert_proto::token::TokenText;
use culvert_proto::update::ServiceName;
use culvert_telemetry::log::LogFormat;

use super::build::DAY;
use super::reader::Reader;
use super::{EngineConfig, Refused};

/// The verb.
pub(super) const VERB: &str = "forward";
const LISTEN: &str = "listen";
const ANYWHERE: &str = "listen-beyond-this-host";

/// The flags of the agent that a forward has a use for; clap would list all.
const FLAGS: &str = "
  --hub URL                   hub; several are tried in order [env: CULVERT_HUB]
  --token-file FILE           file that holds the personal token (cvp_...) [env: CULVERT_TOKEN]
  --cluster ID                cluster of the service
  --service NAME              the service, as its agent calls it
  --listen ADDR:PORT          local address, for example 127.0.0.1:15432
  --listen-beyond-this-host   allow an address that other hosts can reach: they get the service
                              without a token
  --server-ca-cert FILE       CA certificate of the hub, PEM; default: the system's
  --hub-pin sha256:HEX        the hub's public key, in place of a CA
  --client-cert, --client-key FILE
                              client certificate for the hub, PEM
  --proxy URL, --proxy-ca FILE
                              the way out; HTTPS_PROXY and NO_PROXY are read too
  --allow-insecure-server     allow http:// to the hub, for development
  --drain-grace TIME          time for connections after SIGTERM [default: 30s]
  --log-level, --log-format   as of the agent; so are --io-engine, --engine-threads, --spin";

/// A checked configuration of a forward. No `Debug`: it holds a secret.
pub struct ForwardConfig {
    /// Where to dial, in order.
    pub hubs: Vec<HubUrl>,
    /// TLS towards the hub.
    pub hub_tls: ClientTlsOptions,
    /// The way out.
    pub proxy: ProxyConfig,
    /// The person's token.
    pub token: TokenText,
    /// The service's cluster.
    pub cluster: ClusterId,
    /// The service.
    pub service: ServiceName,
    /// The local address.
    pub listen: SocketAddr,
    /// What moves bytes where nothing lies on them.
    pub engine: EngineConfig,
    /// Time for connections in flight after SIGTERM.
    pub drain_grace: Duration,
    /// Log filter.
    pub log_level: String,
    /// Log lines.
    pub log_format: LogFormat,
    /// Things to hear about at start.
    pub warnings: Vec<String>,
}

/// The verb's own flags; those of the agent go with it.
pub(super) fn verb() -> Command {
    let listen = Arg::new(LISTEN)
        .long(LISTEN)
        .value_name("ADDR:PORT")
        .required(true)
        .help("Local address, for example 127.0.0.1:15432");
    let anywhere = Arg::new(ANYWHERE)
        .long(ANYWHERE)
        .action(ArgAction::SetTrue)
        .help("Allow --listen on an address that other hosts can reach: they get the service without a token");
    Command::new(VERB)
        .about("Forward a local port to a service of a cluster, with a personal token")
        .help_template("{about}\n\n{usage-heading} {usage}\n{after-help}")
        .override_usage(
            "culvert-agent forward --hub URL --token-file FILE --cluster ID --service NAME --listen 127.0.0.1:PORT",
        )
        .after_help(FLAGS)
        .arg(listen)
        .arg(anywhere)
}

/// Checks everything that was set.
pub(super) fn build(
    layers: Layers,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<ForwardConfig, Refused> {
    let mut all = Reader {
        layers,
        join_asked: false,
    };
    let insecure = all.switch("allow-insecure-server");
    let hubs = all.hubs(None, insecure);
    let hub_tls = all.hub_tls(None);
    let proxy = all.proxy(env);
    let token = all.personal_token(insecure);
    let cluster = all.cluster(None);
    if cluster.is_none() {
        all.missing("cluster", "prod");
    }
    let service = all.forwarded_service();
    let listen = all.listen();
    let engine = all.engine();
    let drain_grace = all.duration("drain-grace", Duration::ZERO, DAY);
    let log_format = all.log_format();
    match (token, cluster, service, listen) {
        (Some(token), Some(cluster), Some(service), Some(listen))
            if all.layers.problems.is_empty() =>
        {
            Ok(ForwardConfig {
                hubs,
                hub_tls,
                proxy,
                token,
                cluster,
                service,
                listen,
                engine,
                drain_grace,
                log_level: all.text("log-level"),
                log_format,
                warnings: all.layers.warnings,
            })
        }
        _ => Err(Refused::Problems(all.layers.problems)),
    }
}

impl Reader {
    fn missing(&mut self, name: &str, example: &str) {
        let text = format!("no --{name}: set it, for example --{name} {example}");
        if !self
            .layers
            .problems
            .iter()
            .any(|known| known.contains(name))
        {
            self.layers.problems.push(text);
        }
    }

    fn personal_token(&mut self, insecure: bool) -> Option<TokenText> {
        let Some(value) = self.layers.get("token").cloned() else {
            self.layers.problems.push(
                "no personal token: set --token-file or CULVERT_TOKEN; culvert personal-token mint makes one".to_owned(),
            );
            return None;
        };
        let parsed = match insecure {
            true => TokenText::for_development(&value.text),
            false => TokenText::new(&value.text),
        };
        match parsed {
            Ok(token) => Some(token),
            Err(why) => {
                self.secret_problem(&value, format_args!("not a token: {why}"));
                None
            }
        }
    }

    fn forwarded_service(&mut self) -> Option<ServiceName> {
        let Some(value) = self.layers.get("service").cloned() else {
            self.missing("service", "pg");
            return None;
        };
        let name = ServiceName::new(&value.text);
        name.map_err(|why| self.problem(&value, format_args!("is no name of one service: {why}")))
            .ok()
    }

    fn listen(&mut self) -> Option<SocketAddr> {
        let verb = self.layers.matches.subcommand_matches(VERB)?;
        let text = verb.get_one::<String>(LISTEN)?.clone();
        let anywhere = verb.get_flag(ANYWHERE);
        let problem = match text.replacen("localhost:", "127.0.0.1:", 1).parse() {
            Ok(addr) => {
                let addr: SocketAddr = addr;
                if anywhere || addr.ip().is_loopback() {
                    return Some(addr);
                }
                format!(
                    "--{LISTEN}: {addr} can be reached from other hosts, which would get the service without a token; use 127.0.0.1, or --{ANYWHERE} if that is meant"
                )
            }
            Err(_) => format!("--{LISTEN}: {text:?} is no address and port; write 127.0.0.1:15432"),
        };
        self.layers.problems.push(problem);
        None
    }
}
