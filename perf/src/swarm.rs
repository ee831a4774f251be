//! Memory of the hub for each idle agent over TLS.
//!
//! The agents are a swarm in this process: they speak the hello and the session of `culvert-proto`
//! and the one yamux stream that an idle session has. TLS is made by nginx's stream module, so
//! that the hub meets another implementation and this crate needs none.

mod agent;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cpu::spent_ns;
use crate::host::file_limit;
use crate::lab::{Host, Hub, LOAD_CPU, Lab};
use crate::run::line_kib;
use crate::sample::{Sample, float};
use crate::testbed::{Process, Spawn, memory_kib};

/// New sessions each second: below the hub's admission limit.
const CONNECTS_PER_SECOND: u64 = 100;
/// Files of this process beside the agents' sockets.
const FILES_SPARE: u64 = 200;
/// Where nginx takes the swarm's plain connections.
const ORIGINATOR: ([u8; 4], u16) = ([127, 0, 0, 1], 9301);

/// Takes memory at 0, half and all of `agents`.
///
/// # Errors
/// When the host cannot hold so many, or agents are refused.
pub fn measure(
    lab: &Lab,
    name: &str,
    agents: usize,
    settle_seconds: f64,
    note: &mut (dyn FnMut(&str) + Send),
) -> Result<Vec<Sample>> {
    let needed = agents as u64 * 2 + FILES_SPARE;
    let hard = file_limit().1;
    ensure!(
        needed <= hard,
        "{agents} agents need {needed} open files in nginx, {hard} are allowed"
    );
    let clusters: Vec<String> = (0..agents).map(|number| format!("c{number}")).collect();
    let hub = lab.hub_for(true, "auto", &clusters)?;
    let _originator = originate_tls(lab, &hub)?;
    let runtime = lab.at(Host::Hub).runtime()?;
    let settle = Duration::from_secs_f64(settle_seconds);

    let mut samples = Vec::new();
    let mut connected = 0;
    for target in [0, agents / 2, agents] {
        let first_error = connect(&runtime, &clusters[connected..target]);
        wait_connected(lab, &hub, target)
            .with_context(|| format!("first error of an agent: {:?}", first_error.lock()))?;
        connected = target;
        let sample = settled(&hub, name, target, settle)?;
        note(&format!(
            "{target:>6} agents: hub resident {} KiB, proportional {} KiB, slab of all ends {} KiB, \
             CPU {:.2} % while idle",
            sample.hub_rss_kib,
            sample.hub_pss_kib,
            sample.slab_kib,
            float(sample.hub_ns) / 1e7 / sample.seconds,
        ));
        samples.push(sample);
    }
    Ok(samples)
}

type FirstError = std::sync::Arc<std::sync::Mutex<Option<String>>>;

fn connect(runtime: &crate::testbed::NamespaceRuntime, clusters: &[String]) -> FirstError {
    let first_error = FirstError::default();
    for (number, cluster) in clusters.iter().enumerate() {
        let (cluster, first_error) = (cluster.clone(), std::sync::Arc::clone(&first_error));
        let wait = Duration::from_millis(number as u64 * 1000 / CONNECTS_PER_SECOND);
        runtime.spawn(async move {
            tokio::time::sleep(wait).await;
            if let Err(error) = agent::live(SocketAddr::from(ORIGINATOR), &cluster).await {
                let text = format!("{cluster}: {error:#}");
                first_error
                    .lock()
                    .expect("no holder panics")
                    .get_or_insert(text);
            }
        });
    }
    first_error
}

/// nginx: plain on one side, TLS to the hub on the other, one upstream connection for each.
fn originate_tls(lab: &Lab, hub: &Hub) -> Result<Process> {
    let config = lab.path("originator.conf");
    let base = lab.path("originator");
    std::fs::write(
        &config,
        format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
             daemon off; master_process off; user root; pid {base}.pid;
             events {{ worker_connections 16384; }}
             stream {{
               proxy_ssl on; proxy_ssl_verify off; proxy_ssl_session_reuse off;
               proxy_timeout 1h; proxy_buffer_size 1k;
               server {{ listen {listen} backlog=4096; proxy_pass {hub}; }} }}",
            base = base.display(),
            listen = SocketAddr::from(ORIGINATOR),
            hub = hub.public,
        ),
    )?;
    let mut process = Spawn::new("nginx")
        .args(["-e", "stderr", "-c", &config.to_string_lossy()])
        .cpu(LOAD_CPU)
        .start_in(lab.directory(), lab.at(Host::Hub), "originator")?;
    process.wait_port(
        lab.at(Host::Hub),
        ORIGINATOR.into(),
        Duration::from_secs(10),
    )?;
    Ok(process)
}

fn wait_connected(lab: &Lab, hub: &Hub, wanted: usize) -> Result<()> {
    let limit = Duration::from_secs(30 + 2 * wanted as u64 / CONNECTS_PER_SECOND);
    let start = Instant::now();
    loop {
        let text = crate::lab::get(lab.at(Host::Hub), hub.internal, "/metrics")?;
        let seen = text
            .lines()
            .find_map(|line| {
                line.strip_prefix("agents_connected ")?
                    .trim()
                    .parse::<usize>()
                    .ok()
            })
            .context("no agents_connected in /metrics")?;
        if seen == wanted {
            return Ok(());
        }
        ensure!(
            start.elapsed() < limit,
            "{seen} of {wanted} agents after {limit:?}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn settled(hub: &Hub, name: &str, agents: usize, settle: Duration) -> Result<Sample> {
    let pid = hub.process.pid();
    let (start, spent) = (Instant::now(), spent_ns(&[pid])?);
    std::thread::sleep(settle);
    Ok(Sample {
        scenario: name.to_owned(),
        stage: format!("idle {agents}"),
        topology: "lo".to_owned(),
        layout: "tunnel".to_owned(),
        variant: "culvert, TLS".to_owned(),
        connections: agents,
        seconds: start.elapsed().as_secs_f64(),
        hub_ns: spent_ns(&[pid])? - spent,
        hub_rss_kib: memory_kib(pid, "VmRSS")?,
        hub_pss_kib: line_kib(&format!("/proc/{pid}/smaps_rollup"), "Pss:")?,
        slab_kib: line_kib("/proc/meminfo", "Slab:")?,
        ..Sample::default()
    })
}
