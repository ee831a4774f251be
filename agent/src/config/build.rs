//! Settings to a checked [`Config`].

use std::net::SocketAddr;
use std::time::Duration;

use culvert_config::Layers;
use culvert_proto::limits;
use culvert_telemetry::log::LogFormat;
use ipnet::IpNet;

use super::reader::Reader;
use super::{Config, Refused, THREADS_MAX};

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
/// Below this a handful of streams already waits for memory.
pub(super) const MEMORY_BUDGET_BYTES_MIN: u64 = 16 << 20;

/// Checks everything that was set.
pub(super) fn build(
    layers: Layers,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Refused> {
    let mut all = Reader {
        layers,
        join_asked: false,
    };
    // First: what was kept decides what else is wanted.
    let mirror = all.mirror();
    let join = all.join();
    let allow_insecure_server = all.switch("allow-insecure-server");
    let hubs = all.hubs(join.as_ref(), allow_insecure_server);
    let cluster = all.cluster(join.as_ref());
    let hub_tls = all.hub_tls(join.as_ref());
    let (enrolment, join) = all.enrolment(join, &hubs, cluster.as_ref(), &hub_tls);
    let has_certificate = hub_tls.identity.is_some() || enrolment.is_some();
    let credential = all.credential(join, has_certificate, allow_insecure_server);
    let wish = all.wish(&credential, cluster.as_ref());
    let proxy = all.proxy(env);
    let target = all.target();
    let target_tls = target
        .as_ref()
        .filter(|target| target.tls)
        .map(|_| all.target_tls());
    let allow_addresses = all.addresses();
    let config = Config {
        hubs,
        cluster,
        credential,
        wish,
        enrolment,
        mirror,
        hub_tls,
        allow_insecure_server,
        proxy,
        service_account_token: all.service_account_token(target.as_ref()),
        target_tls,
        allow_addresses,
        services: all.services(),
        allow_plaintext_data_channels: all.switch("allow-plaintext-data-channels"),
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
        engine: all.engine(),
        memory_budget_bytes: all.bytes("memory-budget", MEMORY_BUDGET_BYTES_MIN),
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

impl Reader {
    pub(super) fn addresses(&mut self) -> Vec<IpNet> {
        self.list("allow-address", |text| {
            text.parse()
                .or_else(|_| text.parse().map(|ip: std::net::IpAddr| ip.into()))
                .map_err(|_| "is no address or network")
        })
    }

    pub(super) fn health_addr(&mut self) -> SocketAddr {
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

    pub(super) fn log_format(&mut self) -> LogFormat {
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

    pub(super) fn threads(&mut self) -> usize {
        if self.text("threads") == "auto" {
            return std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2));
        }
        self.number("threads", 1, THREADS_MAX)
    }
}
