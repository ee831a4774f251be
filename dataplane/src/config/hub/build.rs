//! From settings as text to a [`Config`], with every problem there is.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use culvert_engine::IoEngine;
use culvert_observe::{Mode, Tier};
use culvert_telemetry::metrics::ClusterHistograms;
use ipnet::IpNet;

use super::{
    CLUSTERS_MAX, ClustersText, Config, ControlLink, FlowLogConfig, FlowLogMode, MetricsConfig,
    ObserveConfig, STREAMS_PER_SESSION_MAX, StateSource, Tls,
};
use crate::config::reader::Reader;
use crate::config::{PAIRS_MAX, THREADS_MAX, units};

impl Reader<'_> {
    /// The configuration, unless a problem stands in its way.
    pub fn hub(&mut self) -> Option<Config> {
        let any = 0..=u64::from(u32::MAX);
        let limit = |found: Option<u32>| found.filter(|limit| *limit > 0);
        let addr = self.address("addr");
        let internal_addr = self.address("internal-addr");
        let admin_addr = self.address("admin-addr");
        let user_addr = self.address("user-addr");
        let agent_mtls_addr = self.address("agent-mtls-addr");
        let control_api = self.parse("control-api", control_api);
        let trusted_proxies = self.parse("trusted-proxies", networks);
        let state_dir = self.directory("state-dir");
        let state = self.state();
        let tls = self.tls();
        let internal_plain = self.internal_plain(tls.as_ref());
        self.people(tls.as_ref(), user_addr.is_some(), control_api.is_some());
        self.certified(
            agent_mtls_addr.is_some(),
            state.as_ref(),
            state_dir.is_some(),
        );
        let rate_limit = limit(self.number("rate-limit", any.clone()));
        let cluster_rate_limit = limit(self.number("cluster-rate-limit", any.clone()));
        let cluster_requests_max = self.number("cluster-max-requests", 1..=*any.end());
        let streams_max = self.number("max-conns", 1..=u64::from(STREAMS_PER_SESSION_MAX));
        let body = self
            .parse("max-body", units::bytes)
            .filter(|bytes| *bytes > 0);
        let head = self.parse("response-head-timeout", units::duration);
        let drain_grace = self.drain_grace();
        let io_engine = self.choice("io-engine", &IoEngine::CHOICES);
        let threads = self.number("threads", 1..=THREADS_MAX as u64);
        let pairs = 1..=PAIRS_MAX as u64;
        let pairs_max = self.number("pairs-max", pairs.clone());
        let cluster_pairs_max = self.number("cluster-pairs-max", pairs);
        let memory_budget = self.memory_budget();
        let log_format = self.log_format();
        let audit = self.audit(state_dir.as_deref(), state.as_ref());
        let observe = self.observe();
        let metrics = self.metrics();
        let flowlog = self.flowlog();
        let engine = self.engine(pairs_max? as usize, cluster_pairs_max? as usize);
        Some(Config {
            addr: addr?,
            internal_addr: internal_addr?,
            admin_addr: admin_addr?,
            user_addr,
            agent_mtls_addr,
            control_api,
            trusted_proxies: trusted_proxies.unwrap_or_default(),
            state: state?,
            state_dir,
            accept_older_snapshot: self.switch("accept-older-snapshot"),
            tls,
            internal_plain,
            rate_limit,
            cluster_rate_limit,
            cluster_requests_max: cluster_requests_max?,
            streams_max: streams_max?,
            body_bytes_max: body,
            response_head_timeout: head.filter(|time| !time.is_zero()),
            drain_grace: drain_grace?,
            allow_plaintext_data_channels: self.switch("allow-plaintext-data-channels"),
            io_engine: io_engine?,
            engine: engine?,
            threads: threads.map(|threads| threads as usize),
            memory_budget: memory_budget?,
            audit: audit?,
            observe: observe?,
            metrics: metrics?,
            flowlog: flowlog?,
            log_level: self.text("log-level")?.to_owned(),
            log_format: log_format?,
            debuggable: self.switch("debuggable"),
        })
    }

    /// What is asked of the observer.
    pub(in crate::config) fn observe(&mut self) -> Option<ObserveConfig> {
        let mode = self.choice("ebpf", &Mode::CHOICES);
        let tier_max = self.choice("ebpf-tier-max", &Tier::CHOICES);
        Some(ObserveConfig {
            mode: mode?,
            tier_max: tier_max?,
            trace: self.switch("ebpf-trace"),
        })
    }

    fn metrics(&mut self) -> Option<MetricsConfig> {
        let clusters_max = self.number("metrics-clusters-max", 8..=CLUSTERS_MAX as u64);
        let histograms = self.parse("metrics-cluster-histograms", |text| {
            Ok(match text {
                "auto" => ClusterHistograms::Auto,
                "all" => ClusterHistograms::All,
                "none" => ClusterHistograms::None,
                names => ClusterHistograms::Named(
                    names.split(',').map(str::trim).map(Into::into).collect(),
                ),
            })
        });
        Some(MetricsConfig {
            clusters_max: clusters_max? as usize,
            histograms: histograms?,
        })
    }

    fn flowlog(&mut self) -> Option<FlowLogConfig> {
        let mode = self.choice("flowlog", &FlowLogMode::CHOICES);
        let slow = self.parse("flowlog-slow", units::duration);
        Some(FlowLogConfig {
            mode: mode?,
            slow: slow?,
        })
    }

    fn memory_budget(&mut self) -> Option<u64> {
        let least = 16 << 20;
        self.parse("memory-budget", |text| match units::bytes(text)? {
            few if few < least => Err(format!("`{text}` is less than 16MiB")),
            enough => Ok(enough),
        })
    }

    fn directory(&mut self, name: &str) -> Option<PathBuf> {
        self.parse(name, |text| {
            let path = PathBuf::from(text);
            let made = std::fs::create_dir_all(&path).and_then(|()| probe_write(&path));
            made.map(|()| path)
                .map_err(|why| format!("{text} is no directory that can be written to: {why}"))
        })
    }

    fn tls(&mut self) -> Option<Tls> {
        let names = ["tls-cert", "tls-key", "tls-client-ca"];
        let given = names.map(|name| self.layers.get(name).is_some());
        let [cert, key, client_ca] = names.map(|name| self.file(name));
        if given == [false; 3] {
            return None;
        }
        for (name, given) in names.iter().zip(given).take(2) {
            if !given {
                self.problems.add(format!(
                    "--{name} is missing: TLS needs a certificate and a key; \
                     without any --tls flag both ports are plain HTTP"
                ));
            }
        }
        Some(Tls {
            cert: cert?,
            key: key?,
            client_ca,
        })
    }

    fn internal_plain(&mut self, tls: Option<&Tls>) -> bool {
        let plain = self.switch("internal-plain");
        if plain && tls.is_some_and(|tls| tls.client_ca.is_some()) {
            let why = "--internal-plain beside --tls-client-ca would let machines in without the \
                       certificate that it asks for; give one of the two";
            self.problems.add(why.to_owned());
        }
        plain
    }

    /// Browsers show no client certificate (D-31).
    fn people(&mut self, tls: Option<&Tls>, own_listener: bool, console: bool) {
        let certificates = tls.is_some_and(|tls| tls.client_ca.is_some());
        if certificates && console && !own_listener {
            let why = "--control-api beside --tls-client-ca: people would be asked for client \
                       certificates; give them a listener of their own: --user-addr :9443";
            self.problems.add(why.to_owned());
        }
    }

    /// The CAs of agents travel in control's state, and what is made for the listener is kept.
    fn certified(&mut self, has: bool, state: Option<&StateSource>, has_dir: bool) {
        if !has {
            return;
        }
        if matches!(
            state,
            Some(StateSource::ClustersFile(_) | StateSource::ClustersText(_))
        ) {
            let why = "--agent-mtls-addr needs --control: certificates of agents are made there; \
                       with a clusters file agents show tokens";
            self.problems.add(why.to_owned());
        }
        if !has_dir && self.layers.get("tls-cert").is_none() {
            let why = "--agent-mtls-addr needs --state-dir, which keeps the certificate that \
                       control makes for it, or --tls-cert and --tls-key";
            self.problems.add(why.to_owned());
        }
    }

    fn state(&mut self) -> Option<StateSource> {
        let clusters = self.text("clusters").map(str::to_owned);
        let control = self.text("control").map(str::to_owned);
        match (clusters, control) {
            (Some(_), Some(_)) => {
                self.problems.add(
                    "--clusters and --control are both given; a data plane has one source of \
                     state: give the clusters file to control instead"
                        .to_owned(),
                );
                None
            }
            (None, None) => {
                self.problems.add(
                    "neither --control nor --clusters is given; name control's state link, or a \
                     clusters file to run without control"
                        .to_owned(),
                );
                None
            }
            (Some(text), None)
                if text.trim_start().starts_with(['[', '{', '-']) || text.contains('\n') =>
            {
                Some(StateSource::ClustersText(ClustersText(text)))
            }
            (Some(_), None) => self.file("clusters").map(StateSource::ClustersFile),
            (None, Some(addr)) => self.control(addr),
        }
    }

    fn control(&mut self, addr: String) -> Option<StateSource> {
        let cert = self.file("control-tls-cert");
        let key = self.file("control-tls-key");
        let ca = self.file("control-tls-ca");
        let signing = self.file("control-key");
        if signing.is_none() && self.layers.get("state-dir").is_none() {
            self.problems.add(
                "--control needs --state-dir, which keeps control's key and a copy of the state, \
                 or --control-key"
                    .to_owned(),
            );
        }
        if cert.is_some() != key.is_some() {
            let both =
                "--control-tls-cert and --control-tls-key belong together: give both or none";
            self.problems.add(both.to_owned());
        }
        let identity = cert.zip(key);
        match addr.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => {}
            Some(("https", rest)) if rest.starts_with("//") => {
                if identity.is_none() {
                    let wants =
                        "--control over https needs --control-tls-cert and --control-tls-key";
                    self.problems.add(wants.to_owned());
                }
            }
            _ => {
                self.problems.add(format!(
                    "--control: `{addr}` is neither unix:/path nor https://host:port"
                ));
                return None;
            }
        }
        Some(StateSource::Control(ControlLink {
            addr,
            identity,
            ca,
            key: signing,
        }))
    }
}

/// The address in `http://127.0.0.1:8088`: control listens on loopback only.
fn control_api(text: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("`{text}` is not http:// and a loopback address with its port");
    let addr = text.strip_prefix("http://").ok_or_else(wrong)?;
    let addr: SocketAddr = addr.trim_end_matches('/').parse().map_err(|_| wrong())?;
    match addr.ip().is_loopback() {
        true => Ok(addr),
        false => Err(wrong()),
    }
}

fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let all = text.split(',').map(str::trim);
    all.map(|one| {
        let address = one.parse::<IpAddr>().map(IpNet::from);
        let network = address.or_else(|_| one.parse::<IpNet>());
        network.map_err(|_| format!("`{one}` is no address or network such as 10.0.0.0/8"))
    })
    .collect()
}

fn probe_write(dir: &Path) -> std::io::Result<()> {
    let probe = dir.join(".write-probe");
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(&probe)
}
